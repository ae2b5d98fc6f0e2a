#!/usr/bin/env python3
"""Measure how the cost of commands grows with the shape and the size of the source and the store.

Each shape is made at three sizes. A row has the CPU seconds, the peak memory and what else counts
for the shape; the last size has the exponent e of CPU ~ size^e from the first to the last size.
Ends with 1 if a command failed or took more memory than the limit.

The shapes:
  references  a git directory with very many loose references: first backup, one new, nothing new
  objects     the same with loose objects
  directory   one directory with very many files: first backup, nothing new, restore
  depth       nested directories: first backup, nothing new, restore
  names       `find` of one name, and of one whole path, over many nights of 5,000 files
  include     `restore --include` of one file in a large tree, and the restore of its path
  chunks      `check` without data, and `index rebuild`, over very many chunks
  index       bytes written to the index by a first backup of small files, as a share of its size
  calls       system calls an entry of a backup of small repositories in which nothing changed
  night       bytes that a night of two changed files adds
  open        `ls latest` and a backup of one file after very many nights
  packs       the share of one pack that is found again after it joined very many packs
  owners      a restore of small files without and with 100 rules for owners (run as root)
"""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time

from measure import TARGET, Bench, arguments, choice, git

SIZES = {
    "references": (10_000, 100_000, 300_000), "objects": (10_000, 100_000, 300_000), "directory": (50_000, 200_000, 500_000),
    "depth": (300, 1_300, 3_900), "names": (100, 300, 1_000), "include": (20_000, 80_000, 320_000),
    "chunks": (300_000, 1_000_000, 3_000_000), "index": (20_000, 100_000, 400_000), "calls": (100, 300, 1_000),
    "night": (5_000, 40_000, 400_000), "open": (1_000, 5_000, 30_000), "packs": (50, 200, 1_000),
    "owners": (100_000, 300_000, 1_000_000),
}


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def spread(folder, n, content, each=1000):
    """Make n files in directories of `each` files; `content` returns the bytes of a file."""
    for at in range(n):
        if at % each == 0:
            inner = os.path.join(folder, f"d{at // each:05d}")
            os.makedirs(inner)
        write(os.path.join(inner, f"f{at:07d}"), content(at))


class Growth(Bench):
    head = ["command", "size", "CPU s", "peak MiB", "other figures", "e"]

    def title(self):
        return "Growth with the size"

    def line(self, row):
        e = f"{row['e']:.2f}" if "e" in row else ""
        return f"| {row['what']} | {row['n']:,} | {row['cpu_seconds']:.2f} | {row['peak_mib']:.0f} | {row.get('more', '')} | {e} |"

    def keep(self, what, n, argv, **more):
        """Measure one command of forgekeep and add its row."""
        row = self.command(what, [self.exe, *argv, "--store", self.store])
        return self.note({**row, "n": n, **more})

    def note(self, row):
        first = next((r for r in self.rows if r["what"] == row["what"]), None)
        if first and self.is_last and first["cpu_seconds"] > 0:
            row["e"] = math.log(row["cpu_seconds"] / first["cpu_seconds"]) / math.log(row["n"] / first["n"])
        return self.add(row)

    def quiet(self, *argv):
        """Run a command of forgekeep that is not measured; return its output."""
        return subprocess.run([self.exe, *argv, "--store", self.store], check=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE).stdout

    def added(self):
        """Return the bytes of all segments and records."""
        sizes = (os.path.getsize(os.path.join(base, leaf)) for folder in ("segments", "snapshots")
                 for base, _, leaves in os.walk(os.path.join(self.store, folder)) for leaf in leaves)
        return sum(sizes)

    def traced(self, argv, calls):
        """Run a command of forgekeep under strace; return the lines of the trace."""
        trace = self.at("trace")
        subprocess.run(["strace", "-f", "-qq", "-y", "--seccomp-bpf", "-e", f"trace={calls}", "-e", "signal=none", "-o", trace,
                        self.exe, *argv, "--store", self.store], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with open(trace, errors="replace") as f:
            return f.readlines()

    def run(self):
        for self.shape in self.a.only or SIZES:
            for n in SIZES[self.shape]:
                self.is_last = n == SIZES[self.shape][-1]
                n = max(2, int(n * self.a.scale))
                self.store, self.source = self.at("store"), self.at("source")
                os.makedirs(self.source)
                try:
                    if self.shape not in ("chunks", "open"):
                        self.quiet("init")
                    getattr(self, self.shape)(n)
                except subprocess.CalledProcessError as error:
                    self.fail(f"{self.shape}, {n}: {error} {(error.stderr or b'')[-300:]}")
                for folder in (self.store, self.source, self.at("target")):
                    # rm removes paths that are too long for Python.
                    subprocess.run(["rm", "-rf", "--", folder], check=True)

    # --- the shapes -----------------------------------------------------------

    def nights(self, n, change):
        """Measure a first backup, one after a change, and one of nothing new."""
        time.sleep(0.1)  # files of the very moment of a backup are read again by the next
        self.keep(f"{self.shape}: first backup", n, ["backup", self.source])
        time.sleep(0.1)
        self.keep(f"{self.shape}: nothing new", n, ["backup", self.source])
        if change:
            change()
            time.sleep(0.1)
            self.keep(f"{self.shape}: one is new", n, ["backup", self.source])

    def references(self, n):
        git(self.source, "init", "-q", "--bare", ".")
        commit = git(self.source, "commit-tree", "-m", "m", git(self.source, "mktree", feed=b"").decode().strip())
        spread(os.path.join(self.source, "refs", "heads"), n, lambda _: commit)
        self.nights(n, lambda: write(os.path.join(self.source, "refs", "heads", "new"), commit))

    def objects(self, n):
        git(self.source, "init", "-q", "--bare", ".")
        dice = random.Random(1)

        def one():
            name = dice.randbytes(20).hex()
            folder = os.path.join(self.source, "objects", name[:2])
            os.makedirs(folder, exist_ok=True)
            write(os.path.join(folder, name[2:]), b"x" + dice.randbytes(60))
        for _ in range(n):
            one()
        self.nights(n, one)

    def directory(self, n):
        for at in range(n):
            write(os.path.join(self.source, f"file-{at:08d}"), b"%d" % at)
        self.nights(n, lambda: write(os.path.join(self.source, "new"), b"new"))
        self.keep("directory: restore", n, ["restore", f"latest:{self.source}", "--target", self.at("target")])

    def depth(self, n):
        begin = os.getcwd()
        os.chdir(self.source)
        for _ in range(n):
            os.mkdir("d")
            os.chdir("d")
        write("f", b"deep")
        os.chdir(begin)
        self.nights(n, None)
        self.keep("depth: restore", n, ["restore", f"latest:{self.source}", "--target", self.at("target")])

    def names(self, n):
        spread(self.source, 5000, lambda at: b"%d" % at, each=100)
        dice = random.Random(2)
        for night in range(n):
            for _ in range(2):
                at = dice.randrange(5000)
                write(os.path.join(self.source, f"d{at // 100:05d}", f"f{at:07d}"), b"%d %d" % (at, night))
            self.quiet("backup", self.source)
        self.keep("names: find NAME", n, ["find", "f0000017"])
        self.keep("names: find PATH", n, ["find", os.path.join(self.source, "d00000", "f0000017")])

    def include(self, n):
        spread(self.source, n, lambda at: b"%d" % at)
        self.quiet("backup", self.source)
        at = n // 2
        path = os.path.join(self.source, f"d{at // 1000:05d}", f"f{at:07d}")
        self.keep("include: restore --include PATH", n, ["restore", "latest", "--include", path, "--target", self.at("target")])
        shutil.rmtree(self.at("target"))
        self.keep("include: restore latest:PATH", n, ["restore", f"latest:{path}", "--target", self.at("target")])

    def owners(self, n):
        spread(self.source, n, lambda at: b"%d" % at)
        for folder in sorted(os.listdir(self.source)):
            owner = 2000 + int(folder[1:]) % 500
            for leaf in os.listdir(os.path.join(self.source, folder)):
                os.chown(os.path.join(self.source, folder, leaf), owner, owner)
        self.quiet("backup", self.source)
        rules = self.at("rules")
        with open(rules, "w") as f:
            for at in range(25):
                f.write(f'[path "d{at * 7:05d}/**"]\nuser {2000 + at} -> {3000 + at}\ngroup * -> {4000 + at}\nmode F0600\n')
            for at in range(25):
                f.write(f"user {2100 + at * 10}-{2109 + at * 10} -> +{5000 + at * 10}\n")
        plain = ["restore", f"latest:{self.source}", "--target", self.at("target"), "--numeric-ids"]
        ratios = []
        for _ in range(3):
            seconds = []
            for what, argv in (("without rules", plain), ("with 100 rules", [*plain, "--owner-map", rules])):
                shutil.rmtree(self.at("target"), ignore_errors=True)
                seconds.append(self.command(f"owners: restore {what}", [self.exe, *argv, "--store", self.store]))
            ratios.append(seconds)
        ratios.sort(key=lambda pair: pair[1]["cpu_seconds"] / pair[0]["cpu_seconds"])
        without, with_rules = ratios[1]
        self.note({**without, "n": n})
        ratio = with_rules["cpu_seconds"] / without["cpu_seconds"]
        self.note({**with_rules, "n": n, "more": f"{ratio:.3f} of the CPU without rules"})

    def chunks(self, n):
        subprocess.run([os.path.abspath(self.a.synthetic), self.store, "--chunks", str(n)], check=True, stdout=subprocess.DEVNULL)
        self.keep("chunks: check", n, ["check"])
        self.keep("chunks: index rebuild", n, ["index", "rebuild"])

    def index(self, n):
        spread(self.source, n, lambda at: random.Random(at).randbytes(700))
        written = 0
        for line in self.traced(["backup", self.source], "write,pwrite64"):
            if "/index.sqlite" in line and (found := re.search(r"= (\d+)$", line.rstrip())):
                written += int(found.group(1))
        size = os.path.getsize(os.path.join(self.store, "index.sqlite"))
        shutil.rmtree(self.store)
        self.quiet("init")
        self.keep("index: first backup", n, ["backup", self.source],
                  more=f"{written / size:.1f} × the index of {size / 1e6:.1f} MB written")

    def calls(self, n):
        entries = 0
        for at in range(n):
            folder = os.path.join(self.source, f"{at:05d}.git")
            os.makedirs(folder)
            git(folder, "init", "-q", "--bare", ".")
            commit = git(folder, "commit-tree", "-m", str(at), git(folder, "mktree", feed=b"").decode().strip()).decode().strip()
            git(folder, "update-ref", "refs/heads/main", commit)
            git(folder, "repack", "-adq")
        entries = sum(len(dirs) + len(files) for _, dirs, files in os.walk(self.source))
        self.quiet("backup", self.source)
        time.sleep(0.1)
        lines = len(self.traced(["backup", self.source], "all"))
        self.keep("calls: nothing new", n, ["backup", self.source], more=f"{lines / entries:.2f} system calls an entry")

    def night(self, n):
        spread(self.source, n, lambda at: b"%d" % at, each=100)
        self.quiet("backup", self.source)
        dice, sizes = random.Random(3), []
        for night in range(3):
            before = self.added()
            for _ in range(2):
                at = dice.randrange(n)
                write(os.path.join(self.source, f"d{at // 100:05d}", f"f{at:07d}"), b"%d %d" % (at, night))
            self.quiet("backup", self.source)
            sizes.append(self.added() - before)
        self.keep("night: nothing new", n, ["backup", self.source], more=f"{sorted(sizes)[1] / 1e3:.1f} kB added by two files")

    def open(self, n):
        subprocess.run([os.path.abspath(self.a.nights_store), self.store, "--nights", str(n)], check=True, stdout=subprocess.DEVNULL)
        write(os.path.join(self.source, "file"), b"new")
        self.quiet("ls", "latest")
        self.keep("open: ls latest", n, ["ls", "latest"])
        self.keep("open: backup of a file", n, ["backup", self.source])

    def packs(self, n):
        git(self.source, "init", "-q", "--bare", ".")
        git(self.source, "config", "gc.auto", "0")
        dice, tip = random.Random(4), None
        for at in range(n):
            blob = git(self.source, "hash-object", "-w", "--stdin", feed=dice.randbytes(15_000)).decode().strip()
            tree = git(self.source, "mktree", feed=f"100644 blob {blob}\tf{at}\n".encode()).decode().strip()
            tip = git(self.source, "commit-tree", "-m", str(at), *(["-p", tip] if tip else []), tree).decode().strip()
            git(self.source, "update-ref", "refs/heads/main", tip)
            git(self.source, "repack", "-dq")
        self.quiet("backup", self.source)
        git(self.source, "repack", "-adq")
        row = self.command("packs: joined", [self.exe, "backup", "--json", self.source, "--store", self.store])
        with open(os.path.join(self.logs, f"{len(self.rows):02d}.log.out")) as f:
            summary = [json.loads(line) for line in f if line.strip()][-1]
        statistics = summary.get("statistics", summary)
        found = statistics["bytes_found_by_extent"] + statistics["bytes_found_by_chunk"]
        self.note({**row, "n": n, "more": f"{100 * found / max(statistics['bytes_read'], 1):.1f} % found again"})


def main():
    ap = arguments(__doc__, "the source, the store and copies, on a file system in memory")
    ap.add_argument("--only", metavar="SHAPE,...", help="these shapes only")
    ap.add_argument("--scale", type=float, default=1, help="factor of all sizes (default: 1)")
    ap.add_argument("--synthetic", default=os.path.join(TARGET, "synthetic-store"), metavar="FILE")
    ap.add_argument("--nights-store", default=os.path.join(TARGET, "nights-store"), metavar="FILE")
    Growth(choice(ap, SIZES)).main()


if __name__ == "__main__":
    sys.exit(main())
