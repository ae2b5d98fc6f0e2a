#!/usr/bin/env python3
"""Measure the peak memory of every command on a store with very many chunks.

Makes a synthetic store (10 million tiny chunks in real segments and a snapshot that
names all of them), runs every command that opens a store on it, and prints how much
memory each took at most. Ends with 1 if one took more than the limit, or failed.

A store of 10 million chunks needs about 10 GB in --work beside three times the size
of --tree, and up to an hour. Try it with --chunks 100000 first.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.path.join(os.path.dirname(HERE), "target", "release")


class Bench:
    def __init__(self, args):
        self.a = args
        self.work = os.path.abspath(args.work)
        self.tree = os.path.abspath(args.tree)
        self.exe = os.path.abspath(args.forgekeep)
        self.store = os.path.join(self.work, "store")
        self.logs = os.path.join(self.work, "logs")
        self.rows, self.bad = [], []

    def measure(self, title, argv, feed=None, stdout=None, codes=(0,)):
        """Run one command; `feed` is a command whose output it reads. Returns its exit code.

        The kernel counts the pages of the process that starts another one as that
        one's until it runs its own program, so nothing below this script's own 15 MiB
        or so can be seen. That is far below any limit of interest.
        """
        log = os.path.join(self.logs, f"{len(self.rows):02d}.log")
        source = subprocess.Popen(feed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) if feed else None
        with open(log, "wb") as err, open(stdout or log + ".out", "wb") as out:
            start = time.monotonic()
            p = subprocess.Popen(argv, stdin=source.stdout if source else subprocess.DEVNULL, stdout=out, stderr=err)
            if source:
                source.stdout.close()
            _, status, use = os.wait4(p.pid, 0)
            wall = time.monotonic() - start
        p.returncode = os.waitstatus_to_exitcode(status)
        if source:
            source.wait()
        mib = use.ru_maxrss / 1024
        self.rows.append((title, mib, wall))
        print(f"{mib:8.0f} MiB {wall:8.1f} s  {title}", file=sys.stderr, flush=True)
        if p.returncode not in codes:
            with open(log, errors="replace") as f:
                self.bad.append(f"{title}: exit code {p.returncode}: {f.read()[-300:].strip()}")
            print("  " + self.bad[-1], file=sys.stderr, flush=True)
        if mib > self.a.limit_mib:
            self.bad.append(f"{title}: {mib:.0f} MiB are more than {self.a.limit_mib}")
        return p.returncode

    def keep(self, title, *args, **options):
        """Measure one command of forgekeep on the store."""
        return self.measure(title, [self.exe, *args, "--store", self.store], **options)

    def moved(self, share):
        """Move a share of the segments out of the store; returns the way back."""
        folder, aside = os.path.join(self.store, "segments"), os.path.join(self.work, "aside")
        names = sorted(os.path.relpath(os.path.join(base, leaf), folder)
                       for base, _, leaves in os.walk(folder) for leaf in leaves)
        names = names[:int(len(names) * share)]
        os.makedirs(aside)
        for name in names:
            os.rename(os.path.join(folder, name), os.path.join(aside, os.path.basename(name)))

        def back():
            for name in names:
                os.rename(os.path.join(aside, os.path.basename(name)), os.path.join(folder, name))
            os.rmdir(aside)
        return back

    def damage(self):
        """Overwrite the middle of the largest segment."""
        paths = [os.path.join(base, leaf) for base, _, leaves in os.walk(os.path.join(self.store, "segments")) for leaf in leaves]
        path = max(paths, key=lambda p: (os.path.getsize(p), p))
        size = os.path.getsize(path)
        os.chmod(path, 0o600)
        with open(path, "r+b") as f:
            f.seek(size // 4)
            f.write(bytes(size // 8))

    def run(self):
        if os.path.isdir(self.work) and os.listdir(self.work):
            sys.exit(f"{self.work} is not empty")
        os.makedirs(self.logs)
        place = lambda name: os.path.join(self.work, name)
        synthetic = "latest~2"  # two backups come after it
        self.measure("writing the chunks (the packer alone)", [os.path.abspath(self.a.synthetic), self.store, "--chunks", str(self.a.chunks)])
        self.measure("`init` (another store)", [self.exe, "init", "--store", place("empty")])
        self.keep("`snapshots`", "snapshots")
        self.keep("`backup` of a tree, first", "backup", self.tree)
        self.keep("`backup`, nothing changed", "backup", self.tree)
        self.keep("`backup`, everything read again", "backup", "--force", "--dry-run", self.tree)
        self.keep("`ls -l`, the synthetic snapshot", "ls", "-l", synthetic)
        self.keep("`ls -l`, the tree", "ls", "-l", "latest")
        self.keep("`find`", "find", "*5")
        self.keep("`diff`, nothing in common", "diff", synthetic, "latest")
        self.keep("`diff`, nothing different", "diff", "latest~1", "latest")
        self.keep("`dump` of a file of a tenth of the chunks", "dump", synthetic + ":/large", stdout=os.devnull)
        self.keep("`restore`, the synthetic snapshot", "restore", synthetic, "--target", place("restored"))
        self.keep("`restore`, nothing to do", "restore", synthetic, "--target", place("restored"))
        self.keep("`restore`, the tree", "restore", "latest", "--target", place("tree"))
        self.keep("`backup` of a stream", "backup", "--stdin-name", "stream.tar", feed=["tar", "-cf", "-", "-C", self.tree, "."])
        self.keep("`dump` of the stream", "dump", "latest:/stream.tar", stdout=os.devnull)
        self.keep("`stats`", "stats")
        self.keep("`check`", "check")
        self.keep("`check --read-data`", "check", "--read-data")
        self.keep("`index rebuild`", "index", "rebuild")
        os.remove(os.path.join(self.store, "index.sqlite"))
        self.keep("`snapshots` without an index (built on open)", "snapshots")
        back = self.moved(0.5)
        self.keep("`index rebuild` of half the segments", "index", "rebuild")
        back()
        self.keep("`snapshots` with half the segments new (taken up on open)", "snapshots")
        self.damage()
        self.keep("`check --read-data`, a segment damaged", "check", "--read-data", codes=(1,))

    def report(self):
        out = [f"Peak memory (resident set) of every command on a store with {self.a.chunks:,} chunks; the limit is {self.a.limit_mib} MiB.\n",
               "| command | peak MiB | seconds |", "|---|---:|---:|"]
        out += [f"| {title} | {mib:.0f} | {wall:.1f} |" for title, mib, wall in self.rows]
        if self.bad:
            out += ["\nNot as it should be:\n"] + [f"- {why}" for why in self.bad]
        return "\n".join(out) + "\n"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--work", required=True, metavar="DIR", help="a new directory for the store and all else; removed at the end")
    ap.add_argument("--tree", default="/usr/share", metavar="DIR", help="what is backed up into the store (default: /usr/share)")
    ap.add_argument("--chunks", type=int, default=10_000_000, help="chunks in the synthetic store (default: 10 million)")
    ap.add_argument("--limit-mib", type=int, default=256, help="memory no command may exceed (default: 256)")
    ap.add_argument("--forgekeep", default=os.path.join(TARGET, "forgekeep"), metavar="FILE")
    ap.add_argument("--synthetic", default=os.path.join(TARGET, "synthetic-store"), metavar="FILE")
    ap.add_argument("--markdown", metavar="FILE", help="write the table (also printed)")
    ap.add_argument("--keep", action="store_true", help="do not remove what is in --work")
    bench = Bench(ap.parse_args())
    bench.run()
    text = bench.report()
    print(text)
    if bench.a.markdown:
        with open(bench.a.markdown, "w") as f:
            f.write(text)
    if not bench.a.keep:
        shutil.rmtree(bench.work)
    sys.exit(1 if bench.bad else 0)


if __name__ == "__main__":
    main()
