#!/usr/bin/env python3
"""Run Forgekeep and its peers side by side on the same corpus.

Every round runs all tools one after the other (A B C ..., A B C ...), next to
the round's own floor: what plain system tools need for the same bytes. Medians
of wall time, CPU time (user + system) and peak memory are quoted, and the
median of the ratios to the floor of the same round.

Jobs (default: all but night2):
  first           first backup into a fresh store       floor: tar | zstd -T0 -3
  unchanged       backup again, nothing changed         floor: find with stat
  unchanged-cold  the same after dropping all caches    floor: find, cold too
  restore         everything into a fresh directory     floor: cp -a
  one-repo        one middle-sized repository           floor: cp -a of it
  check           check with all data read              floors: cat | zstd -d, cat of the segments
  index-rebuild   forgekeep index rebuild               floor: cat of the segments
  large-file      one large file, all cores and one     floor: zstd -3, all cores and one
  night2          backup after night2.sh (one round)    floor: find with stat
"""

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
JOBS = ["first", "unchanged", "unchanged-cold", "restore", "one-repo", "check", "index-rebuild", "large-file", "night2"]
SECRET = "benchmark"  # for the tools that cannot do without encryption


def log(text):
    print(text, file=sys.stderr, flush=True)


class Failed(Exception):
    """A command that did not end with exit code 0, with the path of its log."""


# --- running and measuring ----------------------------------------------------

class Runner:
    def __init__(self, work, timeout):
        self.logs, self.timeout, self.n = os.path.join(work, "logs"), timeout, 0
        os.makedirs(self.logs, exist_ok=True)

    def run(self, name, argv, env=None, cwd=None):
        """Run one command; return its sample (seconds, CPU seconds, KiB) or raise Failed."""
        self.n += 1
        path = os.path.join(self.logs, f"{self.n:04d}-{name}.log")
        with open(path, "wb") as out:
            out.write((" ".join(argv) + "\n").encode())
            out.flush()
            start = time.monotonic()
            try:
                p = subprocess.Popen(argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out,
                                     stderr=subprocess.STDOUT, start_new_session=True)
            except OSError as e:
                raise Failed(f"{argv[0]}: {e}")
            timer = threading.Timer(self.timeout, os.killpg, (p.pid, signal.SIGKILL))
            timer.start()
            _, status, use = os.wait4(p.pid, 0)
            wall = time.monotonic() - start
            timer.cancel()
            p.returncode = os.waitstatus_to_exitcode(status)
        if p.returncode:
            with open(path, "rb") as f:
                last = f.read()[-400:].decode(errors="replace").strip().splitlines()[-1:]
            raise Failed(f"exit code {p.returncode} ({''.join(last)[:200]}), see {path}")
        return {"wall": wall, "cpu": use.ru_utime + use.ru_stime, "rss": use.ru_maxrss}

    def output(self, argv, env=None):
        p = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if p.returncode:
            raise Failed(f"{' '.join(argv)}: exit code {p.returncode}: {p.stdout[-300:].decode(errors='replace')}")
        return p.stdout.decode(errors="replace").strip()


def sh(script, *args):
    return ["sh", "-c", script, "sh", *args]


class Disk:
    """Keeps the file system in the same state before every timed run.

    ext4 without a journal does not reuse the inode of a removed file for a minute
    (`recently_deleted` in fs/ext4/ialloc.c; for six minutes while it is not written
    out), and skips such inodes one by one. For that long after the removal of a
    large tree, creating files is many times slower. Nothing is therefore removed
    between timed runs. Unneeded files are moved aside and removed at the end of a
    job, or when space runs out. The removal is then written out, and the next timed
    run begins PAUSE seconds later.
    """

    PAUSE = 65

    def __init__(self, work):
        self.trash, self.work, self.n, self.need, self.emptied = os.path.join(work, "trash"), work, 0, 0, None
        self.empty()

    def discard(self, path):
        if os.path.lexists(path):
            os.makedirs(self.trash, exist_ok=True)
            self.n += 1
            os.rename(path, os.path.join(self.trash, str(self.n)))

    def fresh(self, path):
        self.discard(path)
        os.makedirs(path)
        return path

    def empty(self):
        if os.path.lexists(self.trash):
            subprocess.run(["rm", "-rf", "--", self.trash])
            os.sync()
            self.emptied = time.monotonic()

    def settle(self, cold=False):
        """Wait until all writes of the previous run are done, before the next one is timed."""
        if shutil.disk_usage(self.work).free < self.need:
            self.empty()
        if self.emptied is not None:
            time.sleep(max(0, self.emptied + self.PAUSE - time.monotonic()))
            self.emptied = None
        os.sync()
        if cold:
            with open("/proc/sys/vm/drop_caches", "w") as f:
                f.write("3\n")


def measure(path, since=None):
    """Count files, directories, repositories and bytes of a tree; with `since` also the bytes changed after it."""
    files = dirs = repos = size = changed = 0
    for base, _, leaves in os.walk(path):
        dirs += 1
        repos += base.endswith(".git")
        files += len(leaves)
        for leaf in leaves:
            st = os.lstat(os.path.join(base, leaf))
            size += st.st_size
            if since and st.st_ctime >= since:
                changed += st.st_size
    return {"files": files, "directories": dirs, "repositories": repos, "bytes": size, "changed": changed}


def differences(source, copy, top=True, most=5):
    """Return differences of two trees in content and all metadata, at most `most`.

    With `top`, also compare the two directories themselves.
    """
    found = []

    def facts(path, st):
        kind = stat.S_IFMT(st.st_mode)
        yield "kind", kind
        yield "mode", oct(st.st_mode)
        yield "owner", (st.st_uid, st.st_gid)
        yield "mtime", st.st_mtime_ns
        yield "xattrs", {n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)}
        if kind == stat.S_IFREG:
            yield "size", st.st_size
            yield "names", st.st_nlink
        elif kind == stat.S_IFLNK:
            yield "target", os.readlink(path)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            yield "device", st.st_rdev

    def same_bytes(a, b):
        with open(a, "rb", buffering=0) as f, open(b, "rb", buffering=0) as g:
            while True:
                x, y = f.read(1 << 20), g.read(1 << 20)
                if x != y:
                    return False
                if not x:
                    return True

    def entry(a, b):
        st = os.lstat(a)
        for (what, x), (_, y) in zip(facts(a, st), facts(b, os.lstat(b))):
            if x != y:
                found.append(f"{b}: {what} {y} instead of {x}")
                return False
        if stat.S_ISREG(st.st_mode) and not same_bytes(a, b):
            found.append(f"{b}: other content")
        return stat.S_ISDIR(st.st_mode)

    def directory(a, b):
        names, others = sorted(os.listdir(a)), sorted(os.listdir(b))
        if names != others:
            extra = sorted(set(names) ^ set(others))
            found.append(f"{b}: missing or too many: {', '.join(extra[:most])}")
            return
        for name in names:
            if len(found) >= most:
                return
            c, d = os.path.join(a, name), os.path.join(b, name)
            if entry(c, d):
                directory(c, d)

    if not os.path.isdir(copy):
        return [f"{copy} is missing"]
    if top:
        entry(source, copy)
    directory(source, copy)
    return found[:most]


# --- the tools ----------------------------------------------------------------

class Tool:
    """The commands of one tool. `store` is its directory, `cache` a separate one."""

    version_args = ["--version"]
    note = ""

    def __init__(self, name, exe, runner, disk):
        self.name, self.exe, self.runner, self.disk, self.work = name, exe, runner, disk, disk.work
        self.base_env = {k: v for k, v in os.environ.items()
                         if not k.startswith(("RESTIC_", "RUSTIC_", "BORG_", "BUPSTASH_", "FORGEKEEP_", "XDG_"))}

    def at(self, store):
        """Select the store for all further calls; its cache is next to it."""
        self.store, self.cache = store, store + ".cache"
        self.env = dict(self.base_env, HOME=os.path.join(self.work, "home"), XDG_CACHE_HOME=self.cache,
                        XDG_CONFIG_HOME=os.path.join(self.work, "home"))
        return self

    def create(self):
        """Create an empty store (not timed)."""
        self.disk.discard(self.store)
        self.disk.fresh(self.cache)
        os.makedirs(os.path.dirname(self.store), exist_ok=True)
        for argv in self.init():
            self.runner.output(argv, self.env)

    def version(self):
        return self.runner.output([self.exe, *self.version_args], self.base_env).splitlines()[0]

    def latest(self):
        """Look up the data of the last backup that `restore` needs (not timed)."""

    def restored(self, corpus, rel, dest):
        """Return the path of the restored source, for tools whose result is compared completely."""

    def timed(self, argv, pin=False, cwd=None):
        return self.runner.run(self.name, (["taskset", "-c", "0"] if pin else []) + argv, self.env, cwd)

    def check(self):
        return None


class Forgekeep(Tool):
    def init(self):
        return [[self.exe, "init", "--store", self.store]]

    def backup(self, path):
        return [self.exe, "backup", "--store", self.store, path]

    def restore(self, corpus, rel, dest):
        what = "latest" if not rel else f"latest:{corpus}/{rel}"
        return [self.exe, "restore", "--store", self.store, what, "--target", dest]

    def restored(self, corpus, rel, dest):
        return dest if rel else dest + corpus

    def check(self):
        return [self.exe, "check", "--store", self.store, "--read-data"]

    def rebuild(self):
        return [self.exe, "index", "rebuild", "--store", self.store]


class Restic(Tool):
    version_args = ["version"]
    note = "always encrypts; repository version 2"

    def call(self, *args):
        return [self.exe, "-r", self.store, "--cache-dir", self.cache, *args]

    def at(self, store):
        super().at(store)
        self.env["RESTIC_PASSWORD"] = SECRET
        return self

    def init(self):
        return [self.call("init", "--repository-version", "2")]

    def backup(self, path):
        return self.call("backup", path)

    def restore(self, corpus, rel, dest):
        return self.call("restore", "latest", "--target", dest, *(["--include", f"{corpus}/{rel}"] if rel else []))

    def check(self):
        return self.call("check", "--read-data")


class Rustic(Tool):
    note = "always encrypts"

    def call(self, *args):
        return [self.exe, "-r", self.store, "--cache-dir", self.cache, "--no-progress", *args]

    def at(self, store):
        super().at(store)
        self.env["RUSTIC_PASSWORD"] = SECRET
        return self

    def init(self):
        return [self.call("init")]

    def backup(self, path):
        return self.call("backup", path)

    def restore(self, corpus, rel, dest):
        return self.call("restore", f"latest:{corpus}/{rel}".rstrip("/"), dest)

    def check(self):
        return self.call("check", "--read-data")


class Borg(Tool):
    note = "-e none"
    options = []

    def at(self, store):
        super().at(store)
        self.env.update(BORG_BASE_DIR=self.cache, BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes",
                        BORG_RELOCATED_REPO_ACCESS_IS_OK="yes")
        return self

    def init(self):
        return [[self.exe, "init", "-e", "none", self.store]]

    def backup(self, path):
        return [self.exe, "create", *self.options, self.store + "::{now:%Y-%m-%dT%H:%M:%S.%f}", path]

    def latest(self):
        self.archive = self.runner.output([self.exe, "list", "--short", "--last", "1", self.store], self.env)

    def restore(self, corpus, rel, dest):  # into the current directory
        return [self.exe, "extract", "--numeric-ids", f"{self.store}::{self.archive}", *([f"{corpus}/{rel}"[1:]] if rel else [])]

    def check(self):
        return [self.exe, "check", "--verify-data", self.store]


class BorgZstd(Borg):
    note = "-e none, -C zstd,3 instead of the default lz4"
    options = ["-C", "zstd,3"]


class Conserve(Tool):
    note = "no encryption"

    def init(self):
        return [[self.exe, "init", self.store]]

    def backup(self, path):
        return [self.exe, "backup", "--no-progress", self.store, path]

    def restore(self, corpus, rel, dest):
        return [self.exe, "restore", "--no-progress", *(["--only", f"/{rel}"] if rel else []), self.store, dest]

    def check(self):
        return [self.exe, "validate", "--no-progress", self.store]


class Bupstash(Tool):
    note = "always encrypts; no check command, `get` of all data to /dev/null instead; its memory is that of its largest process"

    def at(self, store):
        super().at(store)
        self.env.update(BUPSTASH_REPOSITORY=store, BUPSTASH_KEY=os.path.join(self.cache, "key"),
                        BUPSTASH_SEND_LOG=os.path.join(self.cache, "send-log"),
                        BUPSTASH_QUERY_CACHE=os.path.join(self.cache, "query-cache"))
        return self

    def init(self):
        return [[self.exe, "init"], [self.exe, "new-key", "-o", os.path.join(self.cache, "key")]]

    def backup(self, path):
        return [self.exe, "put", "--no-progress", "--send-log", os.path.join(self.cache, "send-log"), path]

    def latest(self):
        rows = self.runner.output([self.exe, "list", "--no-progress", "--format", "jsonl1"], self.env).splitlines()
        rows = [json.loads(r) for r in rows if r.startswith("{")]
        self.query = "id=" + max(rows, key=lambda r: r.get("unix_timestamp_millis", 0))["id"]

    def restore(self, corpus, rel, dest):
        return [self.exe, "restore", "--no-progress", "--ownership", *(["--pick", rel] if rel else []), "--into", dest, self.query]

    def check(self):
        return sh('exec "$@" >/dev/null', self.exe, "get", "--no-progress", self.query)


TOOLS = {"forgekeep": Forgekeep, "forgekeep-before": Forgekeep, "restic": Restic, "rustic": Rustic,
         "bupstash": Bupstash, "conserve": Conserve, "borg": Borg, "borg-zstd": BorgZstd}


# --- the jobs -----------------------------------------------------------------

class Bench:
    def __init__(self, args):
        self.a = args
        self.corpus, self.work = os.path.abspath(args.corpus), os.path.abspath(args.work)
        os.makedirs(os.path.join(self.work, "home"), exist_ok=True)
        self.runner, self.disk = Runner(self.work, args.timeout), Disk(self.work)
        self.results = {}   # job -> name -> list of samples, one per round
        self.floors = {}    # job -> names of its floors, the first one counts
        self.failures = []  # (job, name, reason)
        self.broken = set()  # tools without a usable store
        self.tools, self.versions, self.facts = [], {}, {"load before": os.getloadavg()[0]}
        self.large = None

    def find_tools(self):
        for name, cls in TOOLS.items():
            if self.a.tools and name not in self.a.tools:
                continue
            if cls is Forgekeep:
                binary = {"forgekeep": self.a.forgekeep, "forgekeep-before": self.a.before}[name]
                if not binary:
                    continue
                exe = os.path.abspath(binary)
            else:
                exe = os.path.join(os.path.abspath(self.a.peers or ""), "bin", name.split("-")[0])
                if not self.a.peers:
                    continue
            t = cls(name, exe, self.runner, self.disk)
            try:
                if not os.access(exe, os.X_OK):
                    raise Failed(f"not installed ({exe})")
                self.versions[name] = t.version()
                self.tools.append(t)
            except (Failed, OSError, IndexError) as e:
                self.fail("start", name, e)

    def fail(self, job, name, why):
        log(f"  {name}: FAILED in {job}: {why}")
        self.failures.append((job, name, str(why)))
        rows = self.results.get(job, {})
        for row in [r for r in rows if r.split(",")[0] == name or r == name]:
            del rows[row]

    def failed(self, job, name):
        return any(f[:2] == (job, name) for f in self.failures)

    def add(self, job, name, sample, **extra):
        sample.update(extra)
        self.results.setdefault(job, {}).setdefault(name, []).append(sample)
        more = f", store {sample['store'] / 1e6:.0f} MB" if "store" in sample else ""
        log(f"  {name:<28}{sample['wall']:9.2f} s {sample['cpu']:9.2f} s CPU {sample['rss'] / 1024:7.0f} MiB{more}")

    def floor(self, job, name, argv, cold=False, check=None, **extra):
        names = self.floors.setdefault(job, [])
        if self.failed(job, name):
            return
        self.disk.settle(cold)
        try:
            sample = self.runner.run("floor", argv)
            if check:
                check()
        except Failed as e:
            return self.fail(job, name, e)
        if name not in names:
            names.append(name)
        self.add(job, name, sample, **extra)

    def each(self, job, action, need_store=True):
        """Call `action` for every tool that is still in this job."""
        for t in self.tools:
            if self.failed(job, t.name) or (need_store and t.name in self.broken):
                continue
            t.at(os.path.join(self.work, "stores", t.name))
            try:
                action(t)
            except (Failed, OSError, ValueError, KeyError) as e:
                self.fail(job, t.name, e)
                if job == "first":
                    self.broken.add(t.name)

    def have_stores(self):
        """Create missing stores: the jobs after `first` need them."""
        def make(t):
            if not os.path.exists(t.store):
                log(f"  {t.name}: making its store (not timed)")
                t.create()
                t.timed(t.backup(self.corpus))
        for t in list(self.tools):
            t.at(os.path.join(self.work, "stores", t.name))
            if t.name not in self.broken:
                try:
                    make(t)
                except (Failed, OSError) as e:
                    self.fail("first", t.name, e)
                    self.broken.add(t.name)

    # One method per job; each does one round.

    def first(self):
        target = os.path.join(self.work, "floor.tar.zst")
        self.floor("first", "floor: tar, zstd -T0 -3",
                   sh('tar -cf - -C "$1" . | zstd -T0 -3 -q > "$2"', self.corpus, target))
        if "first" in self.floors and os.path.exists(target):
            self.results["first"][self.floors["first"][0]][-1]["store"] = os.path.getsize(target)
            os.remove(target)

        def one(t):
            t.create()
            self.disk.settle()
            s = t.timed(t.backup(self.corpus))
            self.add("first", t.name, s, store=measure(t.store)["bytes"])
        self.each("first", one, need_store=False)

    def unchanged(self, job="unchanged", cold=False):
        self.floor(job, "floor: find with stat", sh("find \"$1\" -printf '%s %T@ %C@ %i\\n' >/dev/null", self.corpus), cold)

        def one(t):
            self.disk.settle(cold)
            self.add(job, t.name, t.timed(t.backup(self.corpus)))
        self.each(job, one)

    def unchanged_cold(self):
        self.unchanged("unchanged-cold", True)

    def restore(self, job="restore", rel=""):
        source = os.path.join(self.corpus, rel).rstrip("/")
        want = measure(source)
        base = os.path.join(self.work, "restored")

        def compare(copy, top=True):
            found = differences(source, copy, top)
            if found:
                raise Failed("the restored content differs: " + "; ".join(found))

        dest = self.disk.fresh(base)
        self.floor(job, "floor: cp -a", ["cp", "-a", source, dest + "/"],
                   check=lambda: compare(os.path.join(dest, os.path.basename(source))))

        def one(t):
            t.latest()
            self.disk.fresh(base)
            self.disk.settle()
            s = t.timed(t.restore(self.corpus, rel, base), cwd=base)
            got = measure(base)
            if any(got[k] != want[k] for k in ("files", "bytes")):
                raise Failed(f"restored {got['files']} files, {got['bytes']} bytes instead of {want['files']}, {want['bytes']}")
            copy = t.restored(self.corpus, rel, base)
            if copy:
                compare(copy, top=copy != base)
            self.add(job, t.name, s)
        try:
            self.each(job, one)
        finally:
            self.disk.discard(base)

    def one_repo(self):
        self.restore("one-repo", self.facts["one repository"]["path"])

    def segments(self):
        return os.path.join(self.work, "stores", "forgekeep", "segments")

    def cat_floor(self, job):
        self.floor(job, "floor: cat segments", sh('find "$1" -type f -print0 | xargs -0 cat >/dev/null', self.segments()))

    def segment_lists(self):
        """Write all segments to two lists of about equal size in bytes, as files for xargs -0."""
        paths = [os.path.join(base, leaf) for base, _, leaves in os.walk(self.segments()) for leaf in leaves]
        halves = [[], []]
        sizes = [0, 0]
        for path in sorted(paths, key=os.path.getsize, reverse=True):
            least = sizes.index(min(sizes))
            halves[least].append(path)
            sizes[least] += os.path.getsize(path)
        names = [os.path.join(self.work, f"segments.{i}") for i in (1, 2)]
        for name, half in zip(names, halves):
            with open(name, "wb") as f:
                f.write(b"".join(os.fsencode(path) + b"\0" for path in sorted(half)))
        return names

    def check(self):
        if os.path.isdir(self.segments()):
            self.floor("check", "floor: cat and zstd -d, 2 processes",
                       sh('half() { xargs -0 cat <"$1" | zstd -dcq >/dev/null; }; '
                          'half "$1" & one=$!; half "$2" & two=$!; wait $one && wait $two', *self.segment_lists()))
            self.cat_floor("check")

        def one(t):
            t.latest()
            self.disk.settle()
            self.add("check", t.name, t.timed(t.check()))
        self.each("check", one)

    def table_bytes(self):
        """Return the bytes of segments that an index rebuild reads: the end of each, with the
        table's position in the last 56 bytes, the rest of the table, and the header."""
        total = 0
        for base, _, leaves in os.walk(self.segments()):
            for leaf in leaves:
                path = os.path.join(base, leaf)
                size = os.path.getsize(path)
                with open(path, "rb") as f:
                    f.seek(-56, os.SEEK_END)
                    table = int.from_bytes(f.read()[16:20], "little")
                tail = min(size, 32 << 10)
                total += tail + (size - 56 - table if table < size - tail else 0) + min(table, 1024)
        return total

    def index_rebuild(self):
        if os.path.isdir(self.segments()):
            self.cat_floor("index-rebuild")
            size = measure(self.segments())["bytes"]
            self.facts["segments"] = {"bytes": size, "read": self.table_bytes()}

        def one(t):
            if isinstance(t, Forgekeep):
                self.disk.settle()
                s = t.timed(t.rebuild())
                self.add("index-rebuild", t.name, s, rate=size / 1e6 / s["wall"])
        self.each("index-rebuild", one)

    def large_file(self):
        folder = os.path.join(self.work, "large")
        path = os.path.join(folder, "large.bin")
        if not self.large:
            self.make_large(self.disk.fresh(folder), path)
            self.large = path
        size = os.path.getsize(path)
        self.facts["large file"] = {"bytes": size}
        with open(path, "rb") as f:  # into the page cache
            while f.read(1 << 20):
                pass
        out = os.path.join(self.work, "floor.zst")
        for pin, cores in ((False, "all cores"), (True, "1 core")):
            script = 'zstd -T0 -3 -q -c "$1" > "$2"'
            argv = sh(script, path, out)
            self.floor("large-file", f"floor: zstd -3, {cores}", (["taskset", "-c", "0"] if pin else []) + argv)
            samples = self.results["large-file"].get(f"floor: zstd -3, {cores}")
            if samples:
                samples[-1].update(store=os.path.getsize(out), rate=size / 1e6 / samples[-1]["wall"])
            os.remove(out)

        def one(t):
            for pin, cores in ((False, "all cores"), (True, "1 core")):
                t.at(os.path.join(self.work, "large-stores", t.name))
                t.create()
                self.disk.settle()
                s = t.timed(t.backup(folder), pin)
                self.add("large-file", f"{t.name}, {cores}", s, store=measure(t.store)["bytes"], rate=size / 1e6 / s["wall"])
                self.disk.discard(t.store)
                self.disk.discard(t.cache)
        self.each("large-file", one, need_store=False)

    def make_large(self, folder, path):
        """Concatenate LFS objects, dumps and packs, each once, up to the wanted size."""
        left = self.a.large_mb * 10**6
        tops = ["lfs-objects", "db", "repositories", "uploads"]
        with open(path, "wb") as out:
            for top in [os.path.join(self.corpus + ".night2", "db")] + [os.path.join(self.corpus, t) for t in tops]:
                for base, dirs, leaves in os.walk(top):
                    dirs.sort()
                    for leaf in sorted(leaves):
                        if left <= 0 or (top.endswith("repositories") and not leaf.endswith(".pack")):
                            continue
                        with open(os.path.join(base, leaf), "rb") as f:
                            while data := f.read(min(left, 1 << 20)):
                                out.write(data)
                                left -= len(data)

    def night2(self):
        """One round only: night one untimed on a copy of the corpus, night2.sh, then the timed backups."""
        place = self.disk.fresh(os.path.join(self.work, "night2"))
        copy = os.path.join(place, "corpus")
        self.runner.run("copy", ["cp", "-a", self.corpus, copy])
        at = lambda t: t.at(os.path.join(place, "stores", t.name))

        def night_one(t):
            at(t).create()
            t.timed(t.backup(copy))
            t.before = measure(t.store)["bytes"]
        self.each("night2", night_one, need_store=False)
        time.sleep(1.1)
        start = time.time()
        self.runner.run("night2.sh", [os.path.join(HERE, "night2.sh"), copy, "--later", self.corpus + ".night2"])
        self.facts["night two"] = measure(copy, start)
        self.floor("night2", "floor: find with stat", sh("find \"$1\" -printf '%s %T@ %C@ %i\\n' >/dev/null", copy))

        def night_two(t):
            at(t)
            self.disk.settle()
            s = t.timed(t.backup(copy))
            size = measure(t.store)["bytes"]
            self.add("night2", t.name, s, store=size, added=size - t.before)
        self.each("night2", night_two, need_store=False)
        self.disk.discard(place)

    def pick_repository(self):
        """Return the repository of median size, or the requested one."""
        rel = self.a.repo
        if not rel:
            sizes = []
            for base, dirs, _ in os.walk(self.corpus):
                if base.endswith(".git"):
                    sizes.append((measure(base)["bytes"], os.path.relpath(base, self.corpus)))
                    dirs.clear()
            if not sizes:
                return
            rel = sorted(sizes)[len(sizes) // 2][1]
        self.facts["one repository"] = dict(measure(os.path.join(self.corpus, rel)), path=rel)

    def run(self):
        self.find_tools()
        log("reading the corpus once")
        c = self.facts["corpus"] = measure(self.corpus)
        self.disk.need = 2 * c["bytes"] + 8192 * (c["files"] + c["directories"]) + (self.a.large_mb * 2 + 1000) * 10**6
        self.runner.run("warm", sh('tar -cf - -C "$1" . | cat >/dev/null', self.corpus))
        self.pick_repository()
        for job in self.a.only:
            if job == "one-repo" and "one repository" not in self.facts:
                self.fail(job, "all", "no repository in the corpus")
                continue
            if job == "unchanged-cold" and not os.access("/proc/sys/vm/drop_caches", os.W_OK):
                self.fail(job, "all", "dropping caches needs root")
                continue
            self.results.setdefault(job, {})
            if job not in ("first", "large-file", "night2"):
                self.have_stores()
            for r in range(1 if job == "night2" else self.a.runs):
                log(f"{job}, round {r + 1}")
                try:
                    getattr(self, job.replace("-", "_"))()
                except Failed as e:
                    self.fail(job, "all", e)
                    break
            self.disk.empty()
            self.save()

    # --- the report -------------------------------------------------------

    def save(self):
        data = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "machine": machine(self.work),
                "versions": self.versions, "facts": self.facts, "floors": self.floors, "results": self.results,
                "failures": self.failures}
        if self.a.json:
            with open(self.a.json, "w") as f:
                json.dump(data, f, indent=1)
        text = report(data, {t.name: t.note for t in self.tools})
        if self.a.markdown:
            with open(self.a.markdown, "w") as f:
                f.write(text)
        return text


def machine(work):
    cpu = mem = "?"
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    with open("/proc/meminfo") as f:
        mem = f"{int(f.readline().split()[1]) / 1048576:.1f} GiB"
    fs = subprocess.run(["df", "--output=fstype", work], stdout=subprocess.PIPE).stdout.decode().split()[-1]
    first = lambda *argv: (subprocess.run(argv, stdout=subprocess.PIPE).stdout.decode().splitlines() or ["?"])[0]
    return {"cpu": cpu, "cores": os.cpu_count(), "memory": mem, "kernel": platform.release(), "file system": fs,
            "system tools": "; ".join((first("zstd", "--version").strip("* "), first("tar", "--version"), first("cp", "--version"))),
            "runner memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def spread(values, digits):
    m = statistics.median(values)
    if len(values) == 1:
        return f"{m:.{digits}f}"
    return f"{m:.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def report(d, notes):
    m, c = d["machine"], d["facts"].get("corpus", {})
    out = ["# Side-by-side benchmark\n",
           f"- Date: {d['date']}",
           f"- Machine: {m['cpu']}, {m['cores']} cores, {m['memory']} memory, kernel {m['kernel']}, file system {m['file system']}; "
           f"load before the runs {d['facts']['load before']:.2f}",
           f"- System tools: {m['system tools']}",
           f"- Corpus: {c.get('files', 0):,} files in {c.get('directories', 0):,} directories, "
           f"{c.get('repositories', 0):,} repositories, {c.get('bytes', 0) / 1e9:.2f} GB"]
    if "one repository" in d["facts"]:
        o = d["facts"]["one repository"]
        out.append(f"- The one repository: {o['files']} files, {o['bytes'] / 1e3:.0f} kB")
    if "large file" in d["facts"]:
        out.append(f"- The large file: {d['facts']['large file']['bytes'] / 1e6:.0f} MB")
    if "segments" in d["facts"]:
        g = d["facts"]["segments"]
        out.append(f"- Segments: {g['bytes'] / 1e6:.1f} MB; to rebuild the index {g['read'] / 1e6:.2f} MB of them are read "
                   f"({100 * g['read'] / max(g['bytes'], 1):.2f} %), MB/s are of all of them")
    if "night two" in d["facts"]:
        n = d["facts"]["night two"]
        out.append(f"- Night two: {n['changed'] / 1e9:.2f} GB of {n['bytes'] / 1e9:.2f} GB in files that changed")
    out += ["\n| tool | version | remarks |", "|---|---|---|"]
    out += [f"| {t} | {v} | {notes.get(t, '')} |" for t, v in d["versions"].items()]
    out.append("\nTimes are medians (min–max) of the rounds, in seconds; CPU is user + system. Memory is the peak of the "
               f"largest process as the kernel reports it; below {m['runner memory'] / 1024:.0f} MiB it cannot be distinguished from the runner's own. Ratios are medians "
               "of the ratios to the floor of the same round. MB are 10^6 bytes.")
    for job in JOBS:
        rows = d["results"].get(job)
        if not rows:
            continue
        floors = d["floors"].get(job, [])
        more = floors[1:] if job != "large-file" else []
        scales = job == "large-file"
        extra = [k for k, title in EXTRA if any(k in s for ss in rows.values() for s in ss)]
        one = job == "one-repo"
        head = ["", "wall", "CPU", "memory MiB", "÷ floor"] + (["− floor"] if one else []) + [f"÷ {f.split(': ')[-1]}" for f in more]
        before = "forgekeep-before"
        has_before = any(name.split(",")[0] == before for name in rows)
        head += ["wall ÷ before", "CPU ÷ before"] if has_before else []
        head += (["1 core ÷ all cores"] if scales else []) + [dict(EXTRA)[k] for k in extra]
        out += [f"\n## {job}\n", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for name, samples in rows.items():
            digits = 3 if statistics.median([s["wall"] for s in samples]) < 10 else 1
            cells = [name] + [spread([s["wall"] for s in samples], digits), spread([s["cpu"] for s in samples], 1 if digits == 1 else 2),
                              f"{statistics.median([s['rss'] for s in samples]) / 1024:.0f}"]
            base = floors[:1]
            if job == "large-file":  # the floor with the same number of cores
                base = [f for f in floors if f.split(", ")[-1] == name.split(", ")[-1]]
            pairs = list(zip(samples, rows.get(base[0], []))) if base else []
            cells.append(f"{statistics.median([s['wall'] / f['wall'] for s, f in pairs]):.2f}" if pairs else "–")
            if one:
                cells.append(f"{statistics.median([s['wall'] - f['wall'] for s, f in pairs]):.3f}" if pairs else "–")
            for f in more:
                pairs = list(zip(samples, rows.get(f, [])))
                cells.append(f"{statistics.median([s['wall'] / f['wall'] for s, f in pairs]):.2f}" if pairs else "–")
            for k in ["wall", "cpu"] if has_before else []:
                who, *cores = name.split(",")
                pairs = list(zip(samples, rows.get(",".join([before, *cores]), []))) if who == "forgekeep" else []
                cells.append(f"{statistics.median([s[k] / b[k] for s, b in pairs]):.2f}" if pairs else "–")
            if scales:
                who, cores = name.rsplit(", ", 1)
                pairs = list(zip(rows.get(f"{who}, 1 core", []), samples)) if cores == "all cores" else []
                cells.append(f"{statistics.median([o['wall'] / s['wall'] for o, s in pairs]):.2f}" if pairs else "–")
            for k in extra:
                have = [s[k] for s in samples if k in s]
                cells.append(f"{statistics.median(have) / (1 if k == 'rate' else 1e6):.1f}" if have else "–")
            out.append("| " + " | ".join(cells) + " |")
    if d["failures"]:
        out.append("\n## Left out\n")
        out += [f"- {job}: {name}: {why}" for job, name, why in d["failures"]]
    return "\n".join(out) + "\n"


EXTRA = [("store", "store MB"), ("added", "added MB"), ("rate", "MB/s")]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--corpus", required=True, metavar="DIR", help="made by corpus.sh")
    ap.add_argument("--work", required=True, metavar="DIR", help="stores, caches, logs and copies go here; same file system as the corpus")
    ap.add_argument("--forgekeep", metavar="FILE", help="the forgekeep binary (skipped if not given)")
    ap.add_argument("--before", metavar="FILE",
                    help="an earlier forgekeep binary, as the tool forgekeep-before (skipped if not given)")
    ap.add_argument("--peers", metavar="DIR", help="made by peers.sh")
    ap.add_argument("--runs", type=int, default=3, help="rounds per job (default: 3)")
    ap.add_argument("--only", metavar="JOB,...", help="these jobs only; `all` includes night2")
    ap.add_argument("--tools", metavar="TOOL,...", help="these tools only: " + ", ".join(TOOLS))
    ap.add_argument("--repo", metavar="PATH", help="the repository for one-repo, relative to the corpus (default: of median size)")
    ap.add_argument("--large-mb", type=int, default=2000, help="size of the large file (default: 2000)")
    ap.add_argument("--timeout", type=float, default=7200, help="seconds after which a command counts as failed")
    ap.add_argument("--json", metavar="FILE", help="write all samples")
    ap.add_argument("--markdown", metavar="FILE", help="write the report (also printed)")
    a = ap.parse_args()
    for name in ("json", "markdown"):
        if getattr(a, name):
            setattr(a, name, os.path.abspath(getattr(a, name)))
    a.tools = a.tools.split(",") if a.tools else None
    a.only = [j for j in JOBS if j != "night2"] if not a.only else JOBS if a.only == "all" else a.only.split(",")
    unknown = [j for j in a.only if j not in JOBS] + [t for t in a.tools or [] if t not in TOOLS]
    if unknown:
        ap.error(f"unknown: {', '.join(unknown)}")
    bench = Bench(a)
    bench.run()
    print(bench.save())


if __name__ == "__main__":
    main()
