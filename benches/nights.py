#!/usr/bin/env python3
"""Show what a night costs: bytes that a backup adds after a forge has changed its files.

The nights that are dear are those after housekeeping, when git has written its packs
anew, and those with a new database dump: few bytes are new, all files are. Every
sub-command runs git, PostgreSQL and forgekeep for real, prints tables in Markdown, and
compares what it restores with what it backed up.

  git      pushes, then git gc and other ways to repack
  dump     pg_dump in three formats after a share of the rows changed
  thirty   thirty nights in one store, and what the last one costs to restore
  speed    one repacked pack on one core, and a night without repacking

What a backup adds is the growth of the files below STORE/segments. It must be what the
program says it stored, plus the headers and tables of the new segments, to the byte.
"""

import argparse
import contextlib
import glob
import importlib.util
import json
import os
import random
import resource
import signal
import statistics
import struct
import subprocess
import sys
import time
from collections import namedtuple

import dumps
import forge
from compare import Failed, differences

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
DATA, METADATA = 1, 2  # kinds of segments


def log(text):
    print(text, file=sys.stderr, flush=True)


def run(argv, **options):
    """Run a program to its end. Return its standard output, or raise Failed with its messages."""
    try:
        p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **{"stdin": subprocess.DEVNULL, **options})
    except OSError as e:
        raise Failed(f"{argv[0]}: {e}")
    if p.returncode:
        output = (p.stderr + b"\n" + p.stdout)[-2000:].decode(errors="replace").strip()
        raise Failed(f"{' '.join(argv)}: exit code {p.returncode}\n{output}")
    return p.stdout


def copy(source, target):
    """Copy with the times of the files; ctimes and inodes differ."""
    run(["cp", "-a", "--", source, target])


def children_cpu():
    """Return user and system time of all programs that have ended."""
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return use.ru_utime + use.ru_stime


def total(sizes):
    return sum(sizes.values())


# --- tables -------------------------------------------------------------------

def mb(n):
    return f"{n / 1e6:,.3f}"


def percent(share):
    return f"{100 * share:.1f}"


def seconds(n):
    return f"{n:.2f}"


ratio = seconds


def whole(n):
    return f"{n:.0f}"


def count(n):
    return f"{n:,}"


class Table:
    """`columns` are (key, heading, format) of the values in a row."""

    def __init__(self, title, columns):
        self.title, self.columns, self.rows, self.notes = title, columns, [], []

    def add(self, **row):
        self.rows.append(row)
        log("  " + ", ".join(f"{head} {form(row[key])}" for key, head, form in self.columns if key in row))

    def markdown(self):
        lines = [f"### {self.title}\n", "| " + " | ".join(head for _, head, _ in self.columns) + " |",
                 "|" + "|".join("---" if form is str else "---:" for _, _, form in self.columns) + "|"]
        for row in self.rows:
            lines.append("| " + " | ".join(form(row[key]) if key in row else "–" for key, _, form in self.columns) + " |")
        return "\n".join(lines + [f"\n{note}" for note in self.notes]) + "\n"

    def plain(self):
        return {"title": self.title, "rows": self.rows, "notes": self.notes}


# --- forgekeep ----------------------------------------------------------------

Segment = namedtuple("Segment", "path kind size stored")
Added = namedtuple("Added", "data metadata seconds cpu summary")
TICK = 0.1  # a file changed so shortly before a backup is read again by the next one


def read_segment(path):
    """Read a segment as docs/format.md describes it; `stored` is the length of its chunks alone."""
    with open(path, "rb") as f:
        (header,) = struct.unpack("<4xI", f.read(8))
        kind = f.read(11)[10]
        size = f.seek(0, os.SEEK_END)
        f.seek(-56, os.SEEK_END)
        (table,) = struct.unpack("<16xI", f.read(20))
    return Segment(path, kind, size, table - header - 8)


def stored_lengths(segment):
    """Return id and stored length of each chunk of a segment."""
    with open(segment.path, "rb") as f:
        f.seek(-56, os.SEEK_END)
        table, rows = struct.unpack("<16x2I", f.read(24))
        f.seek(table + 16)
        for chunk, _, stored, _ in struct.iter_unpack("<32s3I", f.read(44 * rows)):
            yield chunk, stored


class Keep:
    """forgekeep and one store."""

    def __init__(self, exe, store):
        self.exe, self.store = os.path.abspath(exe), store
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("FORGEKEEP_")}

    def call(self, *args, pin=None, **options):
        argv = (["taskset", "-c", str(pin)] if pin is not None else []) + [self.exe, *args, "--store", self.store]
        return run(argv, env=self.env, **options)

    def segments(self):
        paths = glob.glob(os.path.join(glob.escape(self.store), "segments", "*", "*"))
        return {os.path.basename(path): read_segment(path) for path in paths}

    def create(self):
        self.call("init")
        return self

    def backup(self, *paths, stream=None, name=None, pin=None):
        """Back up paths, or a file as a stream of this name. Trees are moved and copied
        between backups, so metadata that copying changes is ignored."""
        before = self.segments()
        os.sync()
        time.sleep(TICK)
        args = ["--ignore-ctime", "--ignore-inode", *paths] if paths else ["--stdin-name", name]
        with contextlib.ExitStack() as stack:
            stdin = stack.enter_context(open(stream, "rb")) if stream else subprocess.DEVNULL
            start, cpu = time.monotonic(), children_cpu()
            out = self.call("backup", "--json", *args, pin=pin, stdin=stdin)
            took, cpu = time.monotonic() - start, children_cpu() - cpu
        summary = next((m for m in map(json.loads, out.splitlines()) if m["message_type"] == "summary"), None)
        if not summary or summary["errors"] or summary["files_changed_while_read"]:
            raise Failed(f"backup into {self.store}: not a clean one: {out.decode(errors='replace')}")
        self.last = summary["snapshot_id"]
        new = [segment for name, segment in self.segments().items() if name not in before]
        stored = sum(segment.stored for segment in new)
        if stored != summary["data_added_packed"]:
            raise Failed(f"backup into {self.store}: the new segments hold {stored} bytes of chunks, "
                         f"data_added_packed says {summary['data_added_packed']}")
        sizes = {kind: sum(segment.size for segment in new if segment.kind == kind) for kind in (DATA, METADATA)}
        return Added(sizes[DATA], sizes[METADATA], took, cpu, summary)

    def restore(self, target):
        start = time.monotonic()
        self.call("restore", self.last, "--target", target)
        return time.monotonic() - start

    def check(self):
        report = json.loads(self.call("check", "--read-data", "--json").splitlines()[-1])
        if not report.get("clean"):
            raise Failed(f"check of {self.store}: not clean: {report}")

    def same_stream(self, name, path):
        """Check that the stream in the last snapshot equals this file, byte by byte."""
        p = subprocess.Popen([self.exe, "dump", "--store", self.store, f"{self.last}:{name}"], env=self.env, stdout=subprocess.PIPE)
        try:
            run(["cmp", "-", path], stdin=p.stdout)
        finally:
            p.stdout.close()
            p.wait()
        if p.returncode:
            raise Failed(f"dump of {name} out of {self.store}: exit code {p.returncode}")


class Place:
    """The work directory. The current source of a backup is always at `source`."""

    def __init__(self, args):
        self.work = os.path.abspath(args.work)
        os.makedirs(self.work, exist_ok=True)
        if os.listdir(self.work):
            raise Failed(f"{self.work} is not empty")
        self.source, self.store, self.aside = (os.path.join(self.work, name) for name in ("source", "store", "aside"))
        self.keep, self.exe, self.n = Keep(args.forgekeep, self.store), args.forgekeep, 0

    def at(self, *names):
        return os.path.join(self.work, *names)

    def save(self, name):
        """Keep a copy of the source and the store to go back to."""
        os.makedirs(self.aside, exist_ok=True)
        for path in (self.source, self.store):
            copy(path, os.path.join(self.aside, f"{name}-{os.path.basename(path)}"))

    def back(self, name):
        for path in (self.source, self.store):
            self.remove(path)
            copy(os.path.join(self.aside, f"{name}-{os.path.basename(path)}"), path)

    def remove(self, *paths):
        for path in paths:
            if os.path.lexists(path):
                run(["rm", "-rf", "--", path])

    def new(self, path):
        self.remove(path)
        os.makedirs(path)
        return path

    def verify(self, repos=()):
        """Restore the last snapshot. Bytes and all metadata must equal those of the source."""
        target = self.at("restored")
        self.remove(target)
        self.keep.restore(target)
        found = differences(self.source, target + self.source)
        if found:
            raise Failed("the restored content differs: " + "; ".join(found))
        for repo in repos:
            repo.git("fsck", "--full", "--no-dangling", "--no-progress", at=target + repo.path)
        self.keep.check()
        self.remove(target)


# --- repositories -------------------------------------------------------------

def repo_name(path):
    return os.path.basename(path).removesuffix(".bundle").removesuffix(".git")


class Bare:
    """A bare repository in the source."""

    def __init__(self, place, name):
        self.name, self.path = name, os.path.join(place.source, name + ".git")
        self.env = forge.git_env(place.work)

    def git(self, *args, at="", **options):
        """Run git on this repository, on one at another path, or (None) without a repository."""
        where = ["--git-dir", at or self.path] if at is not None else []
        return run([*forge.GIT, *where, *args], env=self.env, **options).decode(errors="replace").strip()

    def create_empty(self, unpack_limit):
        """Create an empty repository without automatic housekeeping, which writes packs and indexes only.
        Files that git derives from them (bitmaps, reverse indexes, commit-graphs) are not measured."""
        self.git("init", "-q", "--bare", "-b", "main", self.path, at=None)
        for key, value in (("receive.unpackLimit", unpack_limit), ("receive.autogc", "false"), ("gc.auto", 0),
                           ("pack.writeReverseIndex", "false"), ("repack.writeBitmaps", "false"),
                           ("gc.writeCommitGraph", "false")):
            self.git("config", key, str(value))

    def packs(self):
        """Return the size of each .pack and .idx, by name."""
        folder = os.path.join(self.path, "objects", "pack")
        return {f"{self.name}/{name}": os.path.getsize(os.path.join(folder, name))
                for name in os.listdir(folder) if name.endswith((".pack", ".idx"))}


class Repo(Bare):
    """A repository that lags behind the full one from which its commits come."""

    def __init__(self, place, origin, options):
        super().__init__(place, repo_name(origin))
        self.options, self.full = options, place.at("full", self.name + ".git")
        if not os.path.isdir(self.full):
            self.git("clone", "-q", "--mirror", os.path.abspath(origin), self.full, at=None)
        self.plan()

    def ask(self, *args):
        return self.git(*args, at=self.full).splitlines()

    def plan(self):
        """Return the first state of the repository, the later commits of the main branch, and a
        branch that can be deleted: the longest unmerged one that needs none of these commits."""
        heads = {line.split()[1]: line.split()[0] for line in self.ask("show-ref", "--heads")}
        main = next((h for h in ("refs/heads/main", "refs/heads/master", *self.ask("symbolic-ref", "HEAD")) if h in heads), None)
        if not main:
            raise Failed(f"{self.name}: no main branch among its {len(heads)} branches")
        line = self.ask("rev-list", "--first-parent", main)
        self.tip, self.base = line[0], line[min(self.options.commits, len(line) - 1)]
        self.tips = line[:line.index(self.base)][::-1]
        commits = lambda *range_: int(self.ask("rev-list", "--count", *range_)[0])
        self.rewound = commits(main, "^" + self.base)
        loose = [(commits(h, "^" + main), h) for h in self.ask("for-each-ref", "--format=%(refname)", f"--no-merged={main}", "refs/heads")]
        matching = [(n, h) for n, h in loose if n == commits(h, "^" + self.base)]
        self.topic_commits, self.topic = max(matching, default=(0, None))

    def create(self, repack):
        """Create the first night, packed with these options of git repack."""
        self.create_empty(self.options.unpack_limit)
        self.hours = 0
        topic = [f"{self.topic}:refs/heads/topic"] if self.topic else []
        self.push(f"{self.base}:refs/heads/main", *topic)
        self.git("repack", "-q", "-d", *repack)
        self.date_packs()

    def push(self, *refs):
        self.git("push", "-q", self.path, *refs, at=self.full)

    def date_packs(self):
        """Date new packs an hour after the previous ones. git prefers the younger of two packs,
        and uses packs that arrive within a second in any order."""
        self.hours += 1
        folder = os.path.join(self.path, "objects", "pack")
        for path in (os.path.join(folder, name) for name in os.listdir(folder)):
            if os.path.getmtime(path) > forge.EPOCH + 3600 * self.hours:
                os.utime(path, (forge.EPOCH + 3600 * self.hours,) * 2)

    def push_some(self, tips, pushes):
        """Push these commits of the main branch, in `pushes` pushes."""
        for last in dict.fromkeys(len(tips) * (i + 1) // pushes for i in range(pushes)):
            if last:
                self.push(f"{tips[last - 1]}:refs/heads/main")
                self.date_packs()


def find_bundles(args):
    found = sorted(glob.glob(os.path.join(glob.escape(args.bundles), "*.bundle")))[:args.most or None]
    if not found:
        raise Failed(f"no *.bundle in {args.bundles}")
    return found


def all_packs(repos):
    return {name: size for repo in repos for name, size in repo.packs().items()}


# --- git: one night of pushes, one of housekeeping ----------------------------

# Title, packing of the first night, git commands of the second night.
HOUSEKEEPING = [
    ("nothing", ["-a"], []),
    ("`git gc`", ["-a"], [["gc", "-q"]]),
    ("`git repack -ad`", ["-a"], [["repack", "-q", "-a", "-d"]]),
    ("`git repack -d --geometric=2`", ["-a"], [["repack", "-q", "-d", "--geometric=2"]]),
    ("`git repack --cruft -d`, a branch deleted", ["-a"], [["update-ref", "-d", "refs/heads/topic"], ["repack", "-q", "-d", "--cruft"]]),
    ("`git repack -adf`", ["-a"], [["repack", "-q", "-a", "-d", "-f"]]),
    ("`git repack -adf`, first night too", ["-a", "-f"], [["repack", "-q", "-a", "-d", "-f"]]),
]


def git_table(title, first):
    return Table(title, [(first, first, str), ("packs", "packs and .idx, MB", mb), ("new", "of them new files, MB", mb), ("added", "added, MB", mb),
                         ("share", "% of packs and .idx", percent), ("share_new", "% of new ones", percent), ("seconds", "backup, s", seconds)])


def git_first_nights(place, repos, repack, table):
    """Build the source and the store up to the night of pushes."""
    place.new(place.source)
    place.remove(place.store)
    place.keep.create()
    have = {}
    for night, step in (("everything", lambda repo: repo.create(repack)),
                        ("pushes", lambda repo: repo.push_some(repo.tips, repo.options.pushes))):
        for repo in repos:
            step(repo)
        have = git_backup(place, repos, have, table, night=f"{night}, first packed with `git repack -d {' '.join(repack)}`")


def git_backup(place, repos, before, table, **first):
    """Back up the source, add the added bytes to the table, and return its packs."""
    packs = all_packs(repos)
    added = place.keep.backup(place.source)
    both, new = added.data + added.metadata, {name: size for name, size in packs.items() if name not in before}
    shares = {"share": both / total(packs), **({"share_new": both / total(new)} if new else {})}
    table.add(**first, packs=total(packs), new=total(new), added=both, data=added.data, metadata=added.metadata, seconds=added.seconds, **shares)
    return packs


def git_nights(args, place, bundles, title):
    """Run all variants with these repositories in one source."""
    repos = [Repo(place, bundle, args) for bundle in bundles]
    first, then = git_table(f"{title}: the nights before", "night"), git_table(f"{title}: the night of housekeeping", "variant")
    for repack in (["-a"], ["-a", "-f"]):
        git_first_nights(place, repos, repack, first)
        place.save("pushed")
        for variant, packed, commands in HOUSEKEEPING:
            if packed != repack:
                continue
            place.back("pushed")
            before = all_packs(repos)
            for repo in repos:
                for command in commands:
                    if repo.topic or command[0] != "update-ref":
                        repo.git(*command)
            git_backup(place, repos, before, then, variant=variant)
            place.verify(repos)
        place.remove(place.aside)
    first.notes = [f"{repo.name}: {len(repo.tips)} first-parent commits rewound, {repo.rewound} commits in all (`rev-list --count`); "
                   f"the branch that is deleted has {repo.topic_commits} of its own." for repo in repos]
    return [first, then]


def job_git(args, place):
    bundles = find_bundles(args)
    tables = git_nights(args, place, bundles, "All repositories")
    for bundle in bundles if args.per_repo else []:
        tables += git_nights(args, place, [bundle], os.path.basename(bundle).removesuffix(".bundle"))[1:]
    return tables


# --- dump: one database, a share of its rows changed --------------------------

ROWS = {"users": 0.03, "projects": 0.02, "routes": 0.02, "issues": 0.10, "merge_requests": 0.08, "notes": 0.50, "ci_builds": 0.25}

# Which rows change: every twentieth run of 500 ids, or every 77th row.
CHANGES = {"5 % of the rows, in clusters": "id / 500 % 20 = 3", "1.3 % of the rows, evenly": "id % 77 = 3"}

# Title, name below the source, options of pg_dump.
FORMATS = [("plain", "main.sql", []), ("`-Fc -Z0`", "main.dump", ["-Fc", "-Z0"]), ("`-Fd -Z0`", "main.dir", ["-Fd", "-Z0"])]


def load_tables(pg, rows):
    """Fill the tables with `rows` rows in all, the same ones each time."""
    counts = {table: max(2, int(rows * share)) for table, share in ROWS.items()}
    made = dumps.Rows(forge.Words("nights"), counts["projects"])
    made.users = counts["users"]
    pg.sql(dumps.SCHEMA)
    for table, count in counts.items():
        pg.load(table, (made.one(table) for _ in range(count)))


def changed_rows(pg, where):
    """Return the number of updated rows, and their bytes in COPY format, as in a dump."""
    lines = b"".join(pg.output(f"COPY (SELECT * FROM {table} WHERE {where}) TO STDOUT") for table in dumps.UPDATED)
    return lines.count(b"\n"), len(lines)


def tree_bytes(path):
    """Return the bytes of a file, or of all files below a directory."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(base, leaf)) for base, _, leaves in os.walk(path) for leaf in leaves)


def make_dumps(place, rows):
    """Dump the first night and each change of it. Return the changed rows and bytes of each."""
    changes = {}

    def dump_all(pg, night):
        folder = place.new(place.at("dumps", night))
        for _, name, options in FORMATS:
            pg.dump(os.path.join(folder, name), *options)

    with dumps.Cluster(place.work) as pg:
        log(f"  loading {rows} rows")
        load_tables(pg, rows)
        dump_all(pg, "first")
        pg.run(f"{pg.bin}/psql", "-qX", "-d", "postgres", "-c", f"ALTER DATABASE {dumps.NAME} RENAME TO first")
        for title, where in CHANGES.items():
            log(f"  changing {title}")
            pg.run(f"{pg.bin}/createdb", "-T", "first", dumps.NAME)
            pg.sql(dumps.updates(where))
            changes[title] = changed_rows(pg, where)
            dump_all(pg, title)
            pg.run(f"{pg.bin}/dropdb", dumps.NAME)
    return changes


def dump_night(place, night, name, stream):
    """Back up the dump of a night under its constant name, compare the restored dump,
    and return the cost; `plain` are the bytes of new chunks before compression."""
    made = place.at("dumps", night, name)
    if stream:
        added = place.keep.backup(stream=made, name="db/" + name)
        place.keep.same_stream("db/" + name, made)
        place.keep.check()
    else:
        place.new(place.source)
        copy(made, os.path.join(place.source, name))
        added = place.keep.backup(place.source)
        place.verify()
    size, plain = tree_bytes(made), added.summary["data_added"]
    return {"dump": size, "plain": plain, "plain_share": plain / size, "added": added.data + added.metadata, "data": added.data,
            "metadata": added.metadata, "seconds": added.seconds}


def job_dump(args, place):
    changes = make_dumps(place, args.rows)
    table = Table(f"Dumps of {args.rows:,} rows, the night after", [
        ("change", "changed", str), ("format", "pg_dump", str), ("way", "as", str), ("dump", "dump, MB", mb),
        ("changed", "changed rows, MB", mb), ("plain", "new chunks, MB", mb), ("plain_ratio", "÷ changed rows", ratio),
        ("plain_share", "% of the dump", percent), ("added", "added to the store, MB", mb), ("ratio", "÷ changed rows", ratio),
        ("share", "% of the first night", percent), ("seconds", "backup, s", seconds)])
    for title, name, options in FORMATS:
        for way in ("file", "stream") if "-Fd" not in options else ("files",):
            place.remove(place.store)
            place.keep.create()
            first = dump_night(place, "first", name, way == "stream")
            table.add(change="first night", format=title, way=way, share=1.0, **first)
            copy(place.store, place.at("first-store"))
            for change, (_, changed) in changes.items():
                place.remove(place.store)
                copy(place.at("first-store"), place.store)
                night = dump_night(place, change, name, way == "stream")
                table.add(change=change, format=title, way=way, changed=changed, plain_ratio=night["plain"] / max(1, changed),
                          ratio=night["added"] / max(1, changed), share=night["added"] / first["added"], **night)
            place.remove(place.at("first-store"))
    table.notes = [f"{change}: {rows:,} rows changed." for change, (rows, _) in changes.items()]
    table.notes.append("Changed rows are counted as they stand in the dump and new chunks before compression; "
                       "what is added to the store is compressed.")
    return [table]


# --- thirty: many nights in one store -----------------------------------------

def load_restore():
    """Load docs/restore.py as a module, which reads entries and recipes."""
    spec = importlib.util.spec_from_file_location("restore", os.path.join(TOP, "docs", "restore.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def walk(keep):
    """Return the parts of the last snapshot: bytes of its files, its pages, recipes and data chunks."""
    reader = load_restore()
    last = json.loads(keep.call("snapshots", "--json").splitlines()[-1])["id"]
    chunks, asked = reader.Chunks(os.path.join(keep.store, "segments")), set()
    get = chunks.get
    chunks.get = lambda chunk: (asked.add(chunk), get(chunk))[1]
    entries = list(reader.entries(chunks, reader.read_snapshot(os.path.join(keep.store, "snapshots"), last)[7]))
    pages = set(asked)
    files = extents = 0
    data = set()
    for _, _, entry in entries:
        if entry[2] != 1 or 14 not in entry:
            continue  # no file, or one that stands in its entry
        files += entry[8]
        for extent in reader.extents(chunks, entry[14], entry.get(15, 0)):
            extents += 1
            if len(extent) > 1:  # not a hole
                data.add(extent[0])
    if reader.failures:
        raise Failed(f"docs/restore.py could not read {reader.failures} parts of {keep.store}")
    stored = {chunk: length for segment in keep.segments().values() for chunk, length in stored_lengths(segment)}
    plain = lambda ids: sum(chunks.place[chunk][2] for chunk in ids)
    on_disk = lambda ids: sum(stored[chunk] for chunk in ids)
    recipes = asked - pages
    return {"files": files, "extents": extents, "chunks": len(data), "chunk_bytes": plain(data), "held": plain(data) / max(1, files),
            "stored": on_disk(data), "pages": plain(pages), "recipes": plain(recipes), "metadata": on_disk(asked)}


def restore_times(place, stores, rounds):
    """Restore the last snapshot of each store, in turns. Return the median seconds."""
    times = {title: [] for title in stores}
    for i in range(rounds):
        for title, keep in stores.items():
            os.sync()
            target = place.at("restores", f"{i}-{title.replace(' ', '-')}")  # removed at the end: see README.md
            times[title].append(keep.restore(target))
            found = differences(place.source, target + place.source)
            if found:
                raise Failed(f"{title}: the restored content differs: " + "; ".join(found))
    return {title: statistics.median(rows) for title, rows in times.items()}


def thirty_nights(args, place, repos, pg, table):
    """Run all nights; every one is a backup of the repositories and of a dump."""
    dump = os.path.join(place.source, "db", "main.sql")
    for night in range(args.nights + 1):
        collected = night > 0 and night % args.gc_every == 0
        for repo in repos:
            if night == 0:
                repo.create(["-a"])
                continue
            part = [len(repo.tips) * n // args.nights for n in (night - 1, night)]
            repo.push_some(repo.tips[part[0]:part[1]], args.pushes)
            if collected:
                repo.git("gc", "-q")
                repo.date_packs()
        if pg and night:
            pg.sql(dumps.updates(f"id / 50 % 100 = {night % 100}"))
        if pg:
            pg.dump(dump)
        added = place.keep.backup(place.source)
        table.add(night=str(night), gc="yes" if collected else "", packs=total(all_packs(repos)),
                  dump=os.path.getsize(dump) if pg else 0, data=added.data, metadata=added.metadata,
                  share=(added.data + added.metadata) / tree_bytes(place.source), seconds=added.seconds)


def job_thirty(args, place):
    repos = [Repo(place, bundle, args) for bundle in find_bundles(args)]
    nights = Table(f"{args.nights} nights in one store", [
        ("night", "night", str), ("gc", "`git gc`", str), ("packs", "packs and .idx, MB", mb), ("dump", "dump, MB", mb),
        ("data", "data added, MB", mb), ("metadata", "metadata added, MB", mb), ("share", "added, % of the source", percent), ("seconds", "backup, s", seconds)])
    place.new(place.source)
    place.keep.create()
    with dumps.Cluster(place.work) if args.rows else contextlib.nullcontext() as pg:
        if pg:
            load_tables(pg, args.rows)
        thirty_nights(args, place, repos, pg, nights)
    later = nights.rows[1:]
    for title, rows in (("with", [row for row in later if row["gc"]]), ("without", [row for row in later if not row["gc"]])):
        if rows:
            nights.notes.append(f"Nights {title} `git gc`: {mb(statistics.mean(row['data'] + row['metadata'] for row in rows))} MB added on average, "
                                f"{mb(statistics.mean(row['metadata'] for row in rows))} MB of it metadata.")
    stores = {f"after {args.nights} nights": place.keep, "fresh store": Keep(args.forgekeep, place.at("fresh")).create()}
    stores["fresh store"].backup(place.source)
    place.verify(repos)
    last = Table("The last snapshot, and one backup of the same source into a fresh store", [
        ("store", "store", str), ("files", "files, MB", mb), ("held", "bytes of chunks ÷ of files", lambda n: f"{n:.3f}"),
        ("chunk_bytes", "chunks, MB", mb), ("stored", "chunks as stored, MB", mb), ("chunks", "chunks", count), ("extents", "extents", count), ("pages", "tree pages, MB", mb),
        ("recipes", "recipe chunks, MB", mb), ("metadata", "metadata as stored, MB", mb), ("restore", "restore, s", seconds)])
    times = restore_times(place, stores, args.rounds)
    for title, keep in stores.items():
        last.add(store=title, restore=times[title], **walk(keep))
    last.notes.append(f"Files are those with chunks; the short ones stand in the tree. Restores: medians of {args.rounds} alternating rounds, "
                      f"ratio {times[last.rows[0]['store']] / times['fresh store']:.2f}.")
    return [nights, last]


# --- speed: one pack on one core ----------------------------------------------

def synthetic_blobs(megabytes):
    """Return a fast-import stream: one commit of incompressible small files with this many megabytes."""
    rng, left, n = random.Random("speed"), int(megabytes * 1e6), 0
    files = []
    while left > 0:
        size = min(int(rng.lognormvariate(0, 1.0) * 2000) + 100, 100_000)
        left, n = left - size, n + 1
        yield b"blob\nmark :%d\ndata %d\n%s\n" % (n, size, rng.randbytes(size))
        files.append(b"M 100644 :%d %02x/%d\n" % (n, n % 256, n))
    yield b"commit refs/heads/synthetic\ncommitter nobody <nobody@example.org> %d +0000\ndata 0\n" % forge.EPOCH + b"".join(files) + b"\n"


class Big(Bare):
    """One repository with the histories of many."""

    def __init__(self, place, origins, args):
        super().__init__(place, "big")
        self.parts = [Repo(place, origin, args) for origin in origins]
        for part in self.parts:
            part.path = self.path  # that is where it pushes

    def create(self, args):
        self.create_empty(args.unpack_limit)
        for part in self.parts:
            part.push(f"{part.base}:refs/heads/{part.name}/main")
        if args.synthetic:
            self.git("fast-import", "--quiet", stdin=None, input=b"".join(synthetic_blobs(args.synthetic)))
        self.git("repack", "-q", "-a", "-d")

    def push(self):
        for part in self.parts:
            part.push(f"{part.tip}:refs/heads/{part.name}/main")


def find_origins(args):
    """Return the bundles, and the bundles and repositories in the directory of clones."""
    found = {repo_name(path): path for path in find_bundles(args)}
    for path in sorted(glob.glob(os.path.join(glob.escape(args.clones), "*"))) if args.clones else []:
        if path.endswith(".bundle") or any(os.path.isdir(os.path.join(path, *objects)) for objects in (["objects"], [".git", "objects"])):
            found.setdefault(repo_name(path), path)
    return list(found.values())


class Race:
    """The nights of `speed` for one binary: each run begins with a store that this binary created."""

    def __init__(self, place, title, exe, trees):
        self.place, self.title, self.trees, self.samples = place, title, trees, {}
        self.first = Keep(exe, place.at(f"{title}-first"))
        self.keep = Keep(exe, place.at(f"{title}-store"))

    def start(self):
        """Copy the store of the first night."""
        self.place.remove(self.keep.store)
        copy(self.first.store, self.keep.store)

    def night(self, name, state, pin=None):
        show(self.place, state)
        added = self.keep.backup(self.place.source, *self.trees, pin=pin)
        self.samples.setdefault(name, []).append(added)

    def round(self, pin):
        self.start()
        self.night("unchanged, one core", "first", pin)
        self.night("repacked, one core", "repacked", pin)
        self.start()
        self.night("unchanged", "first")
        self.night("pushed", "pushed")

    def median(self, name, what="seconds"):
        return statistics.median(getattr(sample, what) for sample in self.samples[name])

    def above(self, what):
        """Return the extra cost of the repacked pack over a night without changes."""
        return max(1e-9, self.median("repacked, one core", what) - self.median("unchanged, one core", what))


def show(place, state):
    """Move one of the saved states to the source; renaming does not change the times of files."""
    current = place.at("shown")
    if os.path.lexists(current):
        os.rename(place.source, place.at("state-" + os.readlink(current)))
        os.unlink(current)
    os.rename(place.at("state-" + state), place.source)
    os.symlink(state, current)


def speed_states(args, place):
    """Create the source of the first night, after pushes, and after pushes and a repack. Return the packs of the last."""
    big = Big(place, find_origins(args), args)
    place.new(place.source)
    big.create(args)
    log("  built the first night")
    copy(place.source, place.at("state-first"))
    big.push()
    copy(place.source, place.at("state-pushed"))
    big.git("repack", "-q", "-a", "-d")
    packs = big.packs()
    os.rename(place.source, place.at("state-repacked"))
    return big, packs


def job_speed(args, place):
    big, packs = speed_states(args, place)
    trees = [os.path.abspath(tree) for tree in args.tree]
    races = [Race(place, title, exe, trees) for title, exe in (("forgekeep", args.forgekeep), ("against", args.against)) if exe]
    for race in races:
        race.first.create()
        show(place, "first")
        race.first.backup(place.source, *trees)
    for i in range(args.rounds):
        log(f"  round {i + 1}")
        for race in races:
            race.round(args.cpu)
    pack = sum(size for name, size in packs.items() if name.endswith(".pack"))
    one = Table("A repacked pack on one core", [
        ("binary", "binary", str), ("packs", "pack, MB", mb), ("added", "added, MB", mb), ("share", "added, % of pack and .idx", percent),
        ("unchanged", "unchanged, s", seconds), ("repacked", "repacked, s", seconds), ("speed", "MB/s", whole), ("cpu", "MB/s of CPU time", whole)])
    none = Table("A night in which nothing was repacked, all cores", [
        ("binary", "binary", str), ("unchanged", "unchanged, s", lambda n: f"{n:.3f}"), ("pushed", "pushed, s", lambda n: f"{n:.3f}"),
        ("pushed_added", "pushed, added MB", mb)])
    for race in races:
        last = race.samples["repacked, one core"][-1]
        one.add(binary=race.title, packs=pack, added=last.data + last.metadata, share=(last.data + last.metadata) / total(packs),
                unchanged=race.median("unchanged, one core"), repacked=race.median("repacked, one core"), speed=pack / 1e6 / race.above("seconds"),
                cpu=pack / 1e6 / race.above("cpu"))
        pushed = race.samples["pushed"][-1]
        none.add(binary=race.title, unchanged=race.median("unchanged"), pushed=race.median("pushed"), pushed_added=pushed.data + pushed.metadata)
    show(place, "repacked")
    races[0].start()
    place.keep = races[0].keep
    place.keep.backup(place.source, *trees)
    place.verify([big])
    one.notes.append(f"Medians of {args.rounds} alternating rounds; MB/s is the pack over the time above that of the unchanged night; "
                     "CPU time is user and system. "
                     f"{len(big.parts)} histories, {sum(part.rewound for part in big.parts)} commits pushed, {args.synthetic} MB of made-up files.")
    if args.against:
        none.notes.append("forgekeep ÷ against, medians of the ratios within a round: " + ", ".join(
            f"{name} {statistics.median(a.seconds / b.seconds for a, b in zip(races[0].samples[name], races[1].samples[name])):.2f}"
            for name in ("unchanged", "pushed")) + ".")
    return [one, none]


# --- command line ---------------------------------------------------------------

EXAMPLES = """examples:
  benches/nights.py git --bundles DIR_OF_BUNDLES --work /var/tmp/fk-nights
  benches/nights.py git --bundles DIR_OF_BUNDLES --work /var/tmp/fk-nights --quick
  benches/nights.py dump --rows 200000 --work /var/tmp/fk-nights --json dump.json
  benches/nights.py thirty --bundles DIR_OF_BUNDLES --work /var/tmp/fk-nights
  benches/nights.py speed --bundles DIR_OF_BUNDLES --work /var/tmp/fk-nights --against OLDER_FORGEKEEP
"""

# Defaults with --quick.
QUICK = {"git": {"commits": 20, "pushes": 2, "most": 1}, "dump": {"rows": 20_000},
         "thirty": {"nights": 6, "commits": 30, "rows": 5_000, "rounds": 1, "most": 1, "gc_every": 3},
         "speed": {"commits": 20, "rounds": 1, "most": 1, "synthetic": 5}}


def parser():
    """Return the parser, and the parsers of its subcommands by name."""
    ap = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    subs = ap.add_subparsers(dest="job", required=True, metavar="git|dump|thirty|speed")
    found = {}

    def job(name, action, help):
        sub = found[name] = subs.add_parser(name, help=help, description=help, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.set_defaults(action=action)
        sub.add_argument("--forgekeep", default=os.path.join(TOP, "target", "release", "forgekeep"), metavar="FILE")
        sub.add_argument("--work", required=True, metavar="DIR", help="a new or empty directory; emptied at the end")
        sub.add_argument("--json", metavar="FILE", help="write the tables as JSON, unrounded (- for standard output, instead of Markdown)")
        sub.add_argument("--markdown", metavar="FILE", help="write the tables (also printed)")
        sub.add_argument("--quick", action="store_true", help="a small run of less than a minute, to see that it works")
        sub.add_argument("--keep", action="store_true", help="do not empty --work")
        return sub

    def histories(sub, commits):
        sub.add_argument("--bundles", required=True, metavar="DIR", help="directory of git bundles (*.bundle), whole repositories")
        sub.add_argument("--most", type=int, metavar="N", help="take the first N bundles only")
        sub.add_argument("--commits", type=int, default=commits, metavar="N", help=f"first-parent commits that come later (default: {commits})")
        sub.add_argument("--unpack-limit", type=int, default=1, metavar="N",
                         help="receive.unpackLimit: pushes of fewer objects become loose ones (default: 1, never)")

    git = job("git", job_git, "pushes in one night, housekeeping in the next")
    histories(git, 100)
    git.add_argument("--pushes", type=int, default=3, metavar="K", help="pushes that bring them (default: 3)")
    git.add_argument("--per-repo", action="store_true", help="then each repository by itself as well")
    dump = job("dump", job_dump, "pg_dump files and streams, a share of the rows changed")
    dump.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="rows in all tables (default: 1,000,000)")
    thirty = job("thirty", job_thirty, "many nights of pushes, housekeeping and dumps in one store")
    histories(thirty, 300)
    thirty.add_argument("--nights", type=int, default=30, metavar="N", help="nights after the first (default: 30)")
    thirty.add_argument("--pushes", type=int, default=2, metavar="K", help="pushes a night and repository (default: 2)")
    thirty.add_argument("--gc-every", type=int, default=5, metavar="N", help="git gc every N nights (default: 5)")
    thirty.add_argument("--rows", type=int, default=100_000, metavar="N", help="rows of the database (default: 100,000; 0: no database)")
    thirty.add_argument("--rounds", type=int, default=5, metavar="N", help="restores of either store (default: 5)")
    speed = job("speed", job_speed, "a repacked pack on one core, and a night without repacking")
    histories(speed, 100)
    speed.add_argument("--clones", metavar="DIR", help="more repositories or bundles whose histories to take")
    speed.add_argument("--synthetic", type=int, default=100, metavar="MB", help="made-up files beside the histories (default: 100)")
    speed.add_argument("--tree", action="append", default=[], metavar="DIR", help="back this up too (can be repeated); it must stay as it is")
    speed.add_argument("--against", metavar="FILE", help="another forgekeep to run side by side")
    speed.add_argument("--cpu", type=int, default=0, metavar="N", help="the core of the one-core runs (default: 0)")
    speed.add_argument("--rounds", type=int, default=5, metavar="N", help="(default: 5)")
    return ap, found


def arguments():
    ap, subs = parser()
    args = ap.parse_args()
    if args.quick:
        subs[args.job].set_defaults(**QUICK[args.job])
        args = ap.parse_args()
    for exe in (args.forgekeep, getattr(args, "against", None)):
        if exe and not os.access(exe, os.X_OK):
            ap.error(f"{exe} is no program; build it with: cargo build --release -p forgekeep")
    return args


def write(args, tables, version):
    options = {k: v for k, v in vars(args).items() if k not in ("action", "work", "json", "markdown")}
    result = {"job": args.job, "forgekeep": version, "options": options, "tables": [table.plain() for table in tables]}
    markdown = "\n".join(table.markdown() for table in tables)
    if args.json == "-":
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        print(markdown)
    for path, text in ((args.json, json.dumps(result, indent=2, ensure_ascii=False) + "\n"), (args.markdown, markdown)):
        if path and path != "-":
            with open(path, "w") as f:
                f.write(text)


def main():
    args = arguments()
    os.umask(0o022)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that PostgreSQL is ended and files are removed
    place = None
    try:
        version = run([os.path.abspath(args.forgekeep), "--version"]).decode().strip()
        place = Place(args)
        write(args, args.action(args, place), version)
    except Failed as e:
        sys.exit(f"nights.py {args.job}: {e}")
    finally:
        if place and not args.keep:
            place.remove(*(os.path.join(place.work, name) for name in os.listdir(place.work)))


if __name__ == "__main__":
    main()
