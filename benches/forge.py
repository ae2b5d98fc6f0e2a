"""Helpers shared by corpus.py and night2.py: text, git plumbing, owners."""

import hashlib
import os
import random
import stat
import subprocess
import zlib

# Every date in the corpus is near this second (2025-03-01 00:00:00 UTC).
EPOCH = 1740787200

# The numeric owners that GitLab's packages use; any numbers except zero work.
UID_GIT, GID_GIT, GID_WEB, UID_DB = 998, 998, 999, 996

GIT = ["git", "-c", "safe.directory=*", "-c", "core.fsync=none", "-c", "gc.auto=0",
       "-c", "maintenance.auto=false", "-c", "core.logAllRefUpdates=false", "-c", "pack.threads=1"]


def git_env(work):
    """Return an environment without the user's and the system's git configuration."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env.update(GIT_CONFIG_NOSYSTEM="1", GIT_CONFIG_GLOBAL=os.devnull, HOME=str(work),
               TZ="UTC", LC_ALL="C")
    return env


def git(repo, *args, data=None, env=None):
    """Run git on a repository and return its output as bytes."""
    cmd = GIT + (["--git-dir", str(repo)] if repo else []) + list(args)
    out = subprocess.run(cmd, input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    if out.returncode:
        raise SystemExit(f"failed: {' '.join(cmd)}\n{out.stderr.decode(errors='replace')}")
    return out.stdout


def hashed(number):
    """GitLab's hashed storage path of a project id, without suffix."""
    h = hashlib.sha256(str(number).encode()).hexdigest()
    return f"{h[0:2]}/{h[2:4]}/{h}"


BASE = """the to of and a in is for that it this on with as be not are by from or we was can an if
when but should at have all no use one which will has there more so only new also then into same
what time still after does error server file branch merge request pipeline runner job commit user
project group issue test build cache deploy release version config database query index table row
column migration worker queue timeout retry storage backup restore upload token session request
response header payload endpoint route controller model view template helper service client socket
thread process memory disk network cluster node shard replica schema transaction lock deadlock
latency throughput metric alert dashboard log trace span event webhook hook trigger schedule cron
review approve reject comment thread discussion mention label milestone epic board list sprint
estimate weight assignee reporter maintainer developer owner guest permission policy scope role
secret variable environment staging production sandbox preview container image registry tag digest
layer volume mount secret certificate key cipher signature checksum chunk segment object blob tree
pointer ref remote origin fork clone fetch push pull rebase squash conflict diff patch hunk line
parser lexer compiler linker crate module package dependency lockfile feature flag option argument
default fallback regression refactor cleanup document readme changelog license typo rename remove
add fix update improve support allow avoid ensure handle check validate verify skip ignore warn
fail pass crash hang leak slow fast large small empty missing wrong invalid broken duplicate stale""".split()


class Words:
    """Endless English-like text: a few thousand words, distributed by Zipf's law."""

    def __init__(self, seed):
        self.rng = rng = random.Random(seed)
        words = list(dict.fromkeys(BASE))
        for w in words[60:]:
            words += [w + s for s in ("s", "ing", "ed") if rng.random() < 0.5]
        syllables = [c + v for c in "b c d f g k l m n p r s t v z st tr pl".split() for v in "aeiou"]
        while len(words) < 4000:
            words.append("".join(rng.choice(syllables) for _ in range(rng.randint(2, 4))) +
                         rng.choice(["", "n", "r", "x", "-api", ".rb", "_id", "Service"]))
        self.words = words
        total, self.cum = 0.0, []
        for rank in range(len(words)):
            total += 1 / (rank + 2.7)
            self.cum.append(total)

    def some(self, n):
        return self.rng.choices(self.words, cum_weights=self.cum, k=n)

    def name(self):
        return "-".join(w.strip("._-").lower() for w in self.rng.sample(self.words[40:], 2))

    def sentence(self):
        r = self.rng
        s = " ".join(self.some(r.randint(4, 17))).capitalize()
        x = r.random()
        if x < 0.06:
            s += f" (see #{r.randint(1, 9000)})"
        elif x < 0.10:
            s += f" `{r.getrandbits(48):012x}`"
        elif x < 0.13:
            s += f" in app/{self.name()}/{self.name()}.rb:{r.randint(1, 900)}"
        return s + "."

    def text(self, size):
        """Paragraphs of about `size` bytes."""
        out, have = [], 0
        while have < size:
            s = self.sentence()
            out.append(s)
            have += len(s) + 1
            out.append("\n\n" if self.rng.random() < 0.15 else " ")
        return "".join(out).rstrip() + "\n"

    def log(self, size):
        """Log lines of about `size` bytes."""
        r, out, have = self.rng, [], 0
        t = EPOCH - r.randint(0, 300 * 86400)
        while have < size:
            t += r.randint(0, 40)
            line = (f"{stamp(t)}.{r.randint(0, 999999):06d}Z {r.choice(('INFO', 'INFO', 'WARN', 'DEBUG', 'ERROR'))}"
                    f" pid={r.randint(300, 32000)} ip=10.{r.randint(0, 255)}.{r.randint(0, 255)}.{r.randint(1, 254)}"
                    f" duration={r.random() * 3:.4f} corr={r.getrandbits(64):016x} {' '.join(self.some(r.randint(3, 12)))}\n")
            out.append(line)
            have += len(line)
        return "".join(out)


def stamp(t, sep="T"):
    """A Unix time as date and time in UTC (integer arithmetic: faster than datetime)."""
    days, secs = divmod(t, 86400)
    z = days + 719468
    era, doe = divmod(z, 146097)
    yoe = (doe - doe // 1460 + doe // 36524 - doe // 146096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    month = mp + 3 if mp < 10 else mp - 9
    year = yoe + era * 400 + (month <= 2)
    return (f"{year:04d}-{month:02d}-{doy - (153 * mp + 2) // 5 + 1:02d}{sep}"
            f"{secs // 3600:02d}:{secs // 60 % 60:02d}:{secs % 60:02d}")


def commits(words, rng, ref, start, count, when, mark):
    """A fast-import stream of `count` commits on `ref`, beginning at commit `start`.

    Returns the stream and the mark of the last commit. The commits add new
    text files and rewrite one, as real pushes do."""
    out = []
    who = words.name().replace("-", ".")
    author = f"{who} <{who}@forge.example>".encode()
    home = words.name()
    for n in range(count):
        when += rng.randint(60, 40000)
        msg = words.sentence().encode()
        out.append(b"commit %s\nmark :%d\nauthor %s %d +0000\ncommitter %s %d +0000\ndata %d\n%s\n" %
                   (ref.encode(), mark + n, author, when, author, when, len(msg), msg))
        if n == 0:
            out.append(b"from %s\n" % start.encode())
        for path in ("NOTES.md", f"docs/{home}/{words.name()}.md"):
            body = words.text(int(200 * 2 ** rng.uniform(0, 4.5))).encode()
            out.append(b"M 100644 inline %s\ndata %d\n%s\n" % (path.encode(), len(body), body))
    return b"".join(out), mark + count - 1


def uploads(words, rng, projects, count):
    """Yield (path below uploads/, bytes) of user uploads, 0.5-60 KB, a tenth of them duplicates."""
    kept = []
    for _ in range(count):
        project = 1 + int(projects * rng.random() ** 2.2)
        secret = f"{rng.getrandbits(128):032x}"
        size = int(500 * 120 ** rng.random())
        kind = rng.random()
        if kind < 0.10 and kept:
            name, data = rng.choice(kept)
        elif kind < 0.62:
            name = rng.choice(("image.png", f"{words.name()}.png", f"Screenshot_{rng.randint(1, 9999)}.png"))
            body = rng.randbytes(size)
            data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", rng.randbytes(8) + b"\x08\x06\0\0\0") + \
                chunk(b"IDAT", body) + chunk(b"IEND", b"")
        elif kind < 0.88:
            name, data = f"{words.name()}.log", words.log(size).encode()
        else:
            name, data = f"{words.name()}.txt", words.text(size).encode()
        if len(kept) < 400:
            kept.append((name, data))
        else:
            kept[rng.randrange(400)] = (name, data)
        yield f"@hashed/{hashed(project)}/{secret}/{name}", data


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def lfs_object(rng, size):
    """(path below lfs-objects/, bytes) of one incompressible object."""
    data = rng.randbytes(size)
    h = hashlib.sha256(data).hexdigest()
    return f"{h[0:2]}/{h[2:4]}/{h[4:]}", data


def put(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())


def owner_and_mode(rel, is_dir):
    """The uid, gid and mode of one path of the corpus."""
    top = rel.split("/", 1)[0]
    if top == "repositories":
        if is_dir:
            return UID_GIT, GID_GIT, 0o2770
        read_only = "/objects/" in rel and "/objects/info/" not in rel
        return UID_GIT, GID_GIT, 0o440 if read_only else 0o640
    if top == "uploads":
        return UID_GIT, GID_WEB, 0o750 if is_dir else 0o644
    if top == "lfs-objects":
        return UID_GIT, GID_GIT, 0o700 if is_dir else 0o600
    if top == "db":
        return UID_DB, UID_DB, 0o700 if is_dir else 0o600
    return 0, 0, 0o775 if is_dir else (0o600 if "secret" in rel or "key" in rel else 0o644)


def set_owners(corpus, below="", times=False):
    """Give everything its owner and mode; with `times` also a fixed date."""
    root = os.geteuid() == 0
    for path, dirs, files in os.walk(os.path.join(corpus, below), topdown=False):
        base = os.path.relpath(path, corpus)
        for name, is_dir in [(f, False) for f in files] + [("", True)]:
            rel = os.path.normpath(os.path.join(base, name))
            full = os.path.join(corpus, rel)
            uid, gid, mode = owner_and_mode(rel, is_dir)
            st = os.lstat(full)
            # Correct owners and modes are left alone, so that the ctime stays.
            if root and (st.st_uid, st.st_gid) != (uid, gid):
                os.lchown(full, uid, gid)
                st = os.lstat(full)
            if not stat.S_ISLNK(st.st_mode) and stat.S_IMODE(st.st_mode) != mode:
                os.chmod(full, mode)
            if times:
                crc = zlib.crc32(rel.encode())
                os.utime(full, ns=((EPOCH - crc % 40000000) * 10**9 + crc % 10**9,) * 2, follow_symlinks=False)


def count(corpus):
    """(files, directories, repositories, bytes) of a tree; its root is counted too."""
    files = dirs = repos = size = 0
    for path, names, leaves in os.walk(corpus):
        dirs += 1
        repos += path.endswith(".git")
        files += len(leaves)
        size += sum(os.lstat(os.path.join(path, n)).st_size for n in leaves)
    return files, dirs, repos, size


def print_counts(corpus):
    files, dirs, repos, size = count(corpus)
    print(f"corpus       {corpus}")
    for top in sorted(os.listdir(corpus)):
        f, d, _, s = count(os.path.join(corpus, top))
        print(f"  {top:<13}{f:>8} files {d:>8} directories {s / 1e6:>10.1f} MB")
    print(f"files        {files}\ndirectories  {dirs}\nrepositories {repos}\nbytes        {size} ({size / 1e9:.2f} GB)")
