#!/usr/bin/env python3
"""Make a forge-like corpus: repositories, uploads, LFS objects, a database dump.

Everything is derived from fixed seeds and fixed dates, so two runs with the
same arguments and the same versions of git and PostgreSQL give the same tree.
"""

import argparse
import bisect
import concurrent.futures
import os
import random
import shutil
import sys
import tempfile

import dumps
import forge

# The shape at scale 1.0.
REPOS = 2074
UPLOADS = 46400
TOTAL = 3.4e9
LFS = 1.0e9
DUMP = 150e6
UPLOAD_MEAN = 12500
SEED = 20250301


def log(text):
    print(text, file=sys.stderr, flush=True)


# --- sources: a few histories out of which all repositories are cut -----------

def synthetic(path, number, env):
    """Create a synthetic history as a substitute for real ones: 1500 commits on text files."""
    words = forge.Words(f"synthetic {number}")
    rng, w = words.rng, words
    forge.git(None, "init", "-q", "--bare", "-b", "main", path, env=env)
    names = [f"{d}/{w.name()}{e}" for d in ("src", "src/" + w.name(), "docs", "tests", "app/" + w.name())
             for e in (".rs", ".py", ".md") for _ in range(14)]
    files = {}
    out = []
    for n in range(1500):
        msg = w.text(60).encode()
        when = forge.EPOCH - (1500 - n) * 20000
        out.append(b"commit refs/heads/main\ncommitter %s <dev@forge.example> %d +0000\ndata %d\n%s\n" %
                   (w.name().encode(), when, len(msg), msg))
        for name in rng.sample(names[:20 + n // 6], rng.randint(1, 4)):
            lines = files.setdefault(name, [])
            at = rng.randint(0, len(lines))
            lines[at:at + rng.randint(0, 4)] = [w.sentence() for _ in range(rng.randint(1, 25))]
            body = "\n".join(lines).encode()
            out.append(b"M 100644 inline %s\ndata %d\n%s\n" % (name.encode(), len(body), body))
    forge.git(path, "fast-import", "--quiet", data=b"".join(out), env=env)
    forge.git(path, "repack", "-adfq", env=env)


class History:
    """A mirror of one source and the points along its first-parent line."""

    def __init__(self, mirror, env):
        self.mirror, self.env = mirror, env
        git = lambda *a, **k: forge.git(mirror, *a, env=env, **k).decode()
        self.line = git("rev-list", "--first-parent", "--reverse", "HEAD").split()
        self.branch = git("symbolic-ref", "HEAD").strip()
        # The point of the line from which on a commit is contained.
        parents = {}
        for row in git("rev-list", "--parents", "HEAD").splitlines():
            c, *p = row.split()
            parents[c] = p
        self.since = {}
        for k, tip in enumerate(self.line):
            todo = [tip]
            while todo:
                c = todo.pop()
                if c not in self.since:
                    self.since[c] = k
                    todo += parents.get(c, [])
        # Annotated and plain tags with the point from which on they may exist.
        self.tags = []
        for row in git("for-each-ref", "refs/tags", "--format=%(objectname) %(*objectname) %(refname)").splitlines():
            oid, *peeled, ref = row.split()
            k = self.since.get(peeled[0] if peeled else oid)
            if k is not None:
                self.tags.append((k, oid, peeled[0] if peeled else None, ref))
        # Size of a repository cut at k: measured at some points, interpolated elsewhere.
        self.at, self.size = [-1], [0]
        points = sorted({int((len(self.line) - 1) * (i / 16) ** 2) for i in range(17)})
        for k in points:
            pack = forge.git(mirror, "pack-objects", "--revs", "-q", "--stdout", data=self.line[k].encode() + b"\n", env=env)
            self.at.append(k)
            self.size.append(len(pack) + 1100 + 34 * int.from_bytes(pack[8:12], "big"))
        self.used = set()

    def bytes_at(self, k):
        i = max(1, bisect.bisect_left(self.at, k))
        k0, k1, s0, s1 = self.at[i - 1], self.at[i], self.size[i - 1], self.size[i]
        return s0 + (s1 - s0) * (k - k0) / max(1, k1 - k0)

    def cut(self, x):
        return round(x * (len(self.line) - 1))

    def free_cut(self, k):
        """Return a cut near k that no other repository uses, if there is one."""
        reach = max(3, k // 20)
        for d in range(reach):
            for c in (k + d, k - d):
                if 0 <= c < len(self.line) and c not in self.used:
                    self.used.add(c)
                    return c
        return k


def sources(clones, cache, env):
    paths = []
    if clones:
        for name in sorted(os.listdir(clones)):
            p = os.path.join(clones, name)
            if name.endswith(".bundle") or os.path.isdir(os.path.join(p, "objects")) or \
                    os.path.exists(os.path.join(p, ".git")):
                paths.append(p)
        if not paths:
            raise SystemExit(f"no bundles or clones in {clones}")
    mirrors = []
    for n, p in enumerate(paths or range(4)):
        m = os.path.join(cache, f"source{n}.git")
        if isinstance(p, int):
            synthetic(m, p, env)
        else:
            forge.git(None, "clone", "-q", "--mirror", p, m, env=env)
        mirrors.append(History(m, env))
    return mirrors


# --- repositories -------------------------------------------------------------

class Repo:
    """The plan of one repository; `build` writes it."""

    def __init__(self, number, history, k):
        self.id, self.history, self.k = number, history, k
        self.rng = random.Random(f"repo {SEED} {number}")
        self.words = None
        self.tip = None


def own_commits(history, repos, env):
    """Put one to four commits of its own on top of each cut, so that no two are equal."""
    words = forge.Words(f"own {SEED}")
    stream, mark, last = [], 1, {}
    for r in repos:
        s, m = forge.commits(words, r.rng, f"refs/own/{r.id}", history.line[r.k], r.rng.randint(1, 4),
                             forge.EPOCH - r.rng.randint(10**6, 3 * 10**7), mark)
        stream.append(s)
        last[r.id], mark = m, m + 1
    forge.git(history.mirror, "fast-import", "--quiet", data=b"".join(stream), env=env)
    refs = forge.git(history.mirror, "for-each-ref", "refs/own", "--format=%(refname) %(objectname)", env=env).decode()
    tips = dict(row.split() for row in refs.splitlines())
    for r in repos:
        r.tip = tips[f"refs/own/{r.id}"]


def build(r, root, vocabulary, env):
    rng, h, line = r.rng, r.history, r.history.line
    words = forge.Words.__new__(forge.Words)  # shares the vocabulary, has its own dice
    words.__dict__.update(vocabulary.__dict__, rng=rng)
    repo = os.path.join(root, "repositories/@hashed", forge.hashed(r.id) + ".git")
    for d in ("info", "objects/info", "objects/pack", "refs/heads", "refs/tags"):
        os.makedirs(os.path.join(repo, d))
    tags = [t for t in h.tags if t[0] <= r.k]
    # The pack comes directly from the mirror; existing deltas are reused.
    want = "\n".join([r.tip] + [t[1] for t in tags]) + "\n"
    pack = forge.git(h.mirror, "pack-objects", "--revs", "-q", os.path.join(repo, "objects/pack/pack"),
                     data=want.encode(), env=env).decode().strip()
    write = lambda rel, text: forge.put(os.path.join(repo, rel), text)
    write("HEAD", f"ref: {h.branch}\n")
    write("config", f"[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"
                    f"[gitlab]\n\tfullpath = {words.name()}/{words.name()}\n")
    write("info/attributes", "")
    write("objects/info/packs", f"P pack-{pack}.pack\n\n")

    # Refs: older ones packed, recent ones loose, as the last housekeeping left them.
    x = r.k / len(line)
    near = lambda: line[int(r.k * (1 - rng.random() ** 2 / 2))]
    packed = {h.branch: r.tip}
    for _ in range(int(rng.expovariate(1) * (1 + 12 * x))):
        packed[f"refs/heads/{words.name()}"] = near()
    requests = 1 + int(rng.expovariate(1 / (2 + 30 * x)))
    loose_from = max(1, requests - int(rng.expovariate(1 / LOOSE_REQUESTS)))
    loose = {}
    for n in range(1, requests + 1):
        oid = near()
        (loose if n >= loose_from else packed)[f"refs/merge-requests/{n}/head"] = oid
        if rng.random() < 0.5:
            (loose if n >= loose_from else packed)[f"refs/keep-around/{oid}"] = oid
    if rng.random() < 0.5:
        loose[f"refs/heads/{words.name()}"] = near()
    rows = [(ref, oid, None) for ref, oid in packed.items()] + [(t[3], t[1], t[2]) for t in tags]
    text = "# pack-refs with: peeled fully-peeled sorted \n"
    for ref, oid, peeled in sorted(rows):
        text += f"{oid} {ref}\n" + (f"^{peeled}\n" if peeled else "")
    write("packed-refs", text)
    for ref, oid in loose.items():
        write(ref, oid + "\n")

    # In part of the repositories: pushes since, still loose objects.
    if rng.random() < 0.5:
        stream = []
        mark = 1
        for n in range(1, rng.choice((1, 1, 2, 3)) + 1):
            s, m = forge.commits(words, rng, f"refs/heads/{words.name()}", r.tip, rng.choice((1, 1, 2)),
                                 forge.EPOCH - rng.randint(0, 10**6), mark)
            stream.append(s + b"reset refs/merge-requests/%d/head\nfrom :%d\n\n" % (requests + n, m))
            mark = m + 1
        forge.git(repo, "fast-import", "--quiet", data=b"".join(stream), env=env)
    if x > 0.05:
        forge.git(repo, "commit-graph", "write", "--reachable", "--split", "--no-progress", env=env)


LOOSE_REQUESTS = 4.0


def repositories(root, count, budget, clones, cache, env, jobs):
    histories = sources(clones, cache, env)
    rng = random.Random(SEED)
    spots = [(i + 0.5) / count for i in range(count)]
    rng.shuffle(spots)
    homes = [histories[i % len(histories)] for i in range(count)]
    # Sizes are skewed: a cut at u**p of the history, with p chosen to reach the total.
    total = lambda p: sum(h.bytes_at(h.cut(u ** p)) + 9000 for u, h in zip(spots, homes))
    low, high = 0.05, 60.0
    for _ in range(40):
        p = (low + high) / 2
        low, high = (p, high) if total(p) > budget else (low, p)
    log(f"repositories: {count} out of {len(histories)} histories, cut at u**{p:.2f}")
    repos = [Repo(i + 1, h, h.free_cut(h.cut(u ** p))) for i, (u, h) in enumerate(zip(spots, homes))]
    for h in histories:
        own_commits(h, [r for r in repos if r.history is h], env)
    vocabulary = forge.Words(SEED)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(lambda r: build(r, root, vocabulary, env), repos):
            pass


# --- the rest -----------------------------------------------------------------

def etc(root):
    rng = random.Random(f"etc {SEED}")
    hexes = lambda n: f"{rng.getrandbits(4 * n):0{n}x}"
    put = lambda name, text: forge.put(os.path.join(root, "etc", name), text)
    put("gitlab.rb", "external_url 'https://forge.example'\n"
        "gitlab_rails['backup_path'] = '/var/opt/gitlab/backups'\n" +
        "".join(f"# gitlab_rails['option_{i}'] = {i}\n" for i in range(2000)))
    put("gitlab-secrets.json", '{"gitlab_rails": {"secret_key_base": "%s", "db_key_base": "%s", "otp_key_base": "%s"}}\n'
        % (hexes(128), hexes(128), hexes(128)))
    put("initial_root_secret", hexes(44) + "\n")
    put("ssh/ssh_host_ed25519_key", "-----BEGIN OPENSSH PRIVATE KEY-----\n%s\n-----END OPENSSH PRIVATE KEY-----\n" % hexes(380))
    put("ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 %s root@forge\n" % hexes(68))
    put("ssl/forge.example.crt", "-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----\n" % hexes(1800))
    put("ssl/forge.example.key", "-----BEGIN PRIVATE KEY-----\n%s\n-----END PRIVATE KEY-----\n" % hexes(1700))
    put("nginx/gitlab-http.conf", "".join(f"server_{i} {{ listen {8000 + i}; }}\n" for i in range(200)))
    os.makedirs(os.path.join(root, "etc/trusted-certs"))
    os.symlink("../ssl/forge.example.crt", os.path.join(root, "etc/trusted-certs/forge.crt"))


def main():
    ap = argparse.ArgumentParser(
        prog="corpus.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Night two's database dump and its new LFS objects are prepared in DIR.night2, for night2.sh. "
               "Run as root to get several owners. Needs git, PostgreSQL's server programs and pg_dump.")
    ap.add_argument("dir", metavar="DIR", help="where to make it; must not exist yet")
    ap.add_argument("--scale", type=float, default=1.0, help="1.0 is 2,074 repositories and 3.4 GB (default)")
    ap.add_argument("--clones", metavar="DIR", help="git bundles or clones to cut the repositories from (default: synthetic ones)")
    ap.add_argument("--jobs", type=int, default=os.cpu_count(), help="repositories written at the same time")
    a = ap.parse_args()
    root = os.path.abspath(a.dir)
    later = root + ".night2"
    for d in (root, later):
        if os.path.lexists(d):
            raise SystemExit(f"{d} exists already")
    os.umask(0o022)
    os.makedirs(root)
    os.makedirs(later)
    cache = tempfile.mkdtemp(prefix="corpus-", dir=os.path.dirname(root))
    os.chmod(cache, 0o711)
    env = forge.git_env(cache)
    scale = a.scale
    count = max(4, round(REPOS * scale))
    uploads = round(UPLOADS * scale)
    try:
        budget = (TOTAL - LFS - DUMP - UPLOADS * UPLOAD_MEAN) * scale
        repositories(root, count, budget, a.clones, cache, env, a.jobs)
        log("uploads")
        words = forge.Words(f"uploads {SEED}")
        for rel, data in forge.uploads(words, words.rng, count, uploads):
            forge.put(os.path.join(root, "uploads", rel), data)
        log("database")
        dumps.make(os.path.join(root, "db/day1/gitlabhq_production.sql"),
                   os.path.join(later, "db/day2/gitlabhq_production.sql"), DUMP * scale, count, cache)
        etc(root)
        # LFS objects fill the rest of the total.
        log("lfs objects")
        left = TOTAL * scale - forge.count(root)[3]
        left = min(max(left, 0.5 * LFS * scale), 1.5 * LFS * scale)
        rng = random.Random(f"lfs {SEED}")
        while left > 0.5e6:
            size = min(int(1e6 * 40 ** rng.random()), int(left))
            rel, data = forge.lfs_object(rng, size)
            forge.put(os.path.join(root, "lfs-objects", rel), data)
            left -= size
        for n in range(max(1, round(3 * scale))):
            rel, data = forge.lfs_object(rng, int(1e6 * 10 ** rng.random()))
            forge.put(os.path.join(later, "lfs-objects", rel), data)
        forge.set_owners(root, times=True)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    forge.print_counts(root)


if __name__ == "__main__":
    main()
