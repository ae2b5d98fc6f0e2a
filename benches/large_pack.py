#!/usr/bin/env python3
"""Measure what a repacked git pack of any size costs: memory, time, bytes.

Makes a bare repository with one made-up pack, backs it up, replaces the pack by one of
the next night (the same objects but for some, in the order git gives them), and backs
that up on one core and on all. Restores it beside a fresh store's only backup of the
same files, and compares both packs with what was backed up. Ends with 1 if a command
failed, took more memory than the limit, or brought back other bytes.

A pack of 5 GB needs some 30 GB in --work. Try it with --bytes 100M first.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time

from measure import TARGET, Bench, arguments

UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}


def number(text):
    """Parse a number such as 5G, 10M or 12345."""
    factor = UNITS.get(text[-1:].upper(), 1)
    return int(float(text[:-1] if factor > 1 else text) * factor)


def append_sum(path, *more):
    """Append `more` and the SHA-1 of the whole file to it. Return the SHA-1."""
    with open(path, "r+b") as f:
        digest = hashlib.sha1()
        while block := f.read(1 << 20):
            digest.update(block)
        for part in more:
            digest.update(part)
            f.write(part)
        f.write(digest.digest())
    return digest.digest()


def store_bytes(store):
    return sum(os.path.getsize(os.path.join(base, leaf))
               for base, _, leaves in os.walk(os.path.join(store, "segments")) for leaf in leaves)


def copy_store(source, target):
    """Copy a store with links to its segments, which never change."""
    shutil.copytree(source, target, copy_function=lambda a, b: (os.link if os.sep + "segments" + os.sep in a else shutil.copy2)(a, b))


class LargePack(Bench):
    head = ["command", "peak MiB", "seconds", "CPU seconds", "MB/s", "MB added"]

    def __init__(self, args):
        super().__init__(args)
        self.repo = self.at("source", "large.git")

    def create_repo(self):
        for name in ("objects/pack", "objects/info", "refs/heads", "refs/tags"):
            os.makedirs(os.path.join(self.repo, name))
        files = {"HEAD": "ref: refs/heads/main\n", "config": "[core]\n\tbare = true\n"}
        for name, text in files.items():
            with open(os.path.join(self.repo, name), "w") as f:
                f.write(text)

    def put_pack(self, *options):
        """Create a pack that replaces all others. Returns its size."""
        folder, new = os.path.join(self.repo, "objects", "pack"), self.at("new")
        os.makedirs(new)
        start = time.monotonic()
        subprocess.run([os.path.abspath(self.a.generator), new, "--bytes", str(self.a.bytes), "--objects", str(self.a.objects),
                        "--seed", str(self.a.seed), *options], check=True)
        pack, index = os.path.join(new, "pack"), os.path.join(new, "idx")
        name = append_sum(pack)
        append_sum(index, name)
        for old in os.listdir(folder):
            os.remove(os.path.join(folder, old))
        for path in (pack, index):
            os.chmod(path, 0o444)
            os.rename(path, os.path.join(folder, f"pack-{name.hex()}.{os.path.basename(path)}"))
        os.rmdir(new)
        size = sum(os.path.getsize(os.path.join(folder, leaf)) for leaf in os.listdir(folder))
        print(f"{size / 1e6:,.0f} MB made in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        return size

    def measure(self, title, store, *args, size, one_core=False):
        """Run one command of forgekeep on a store."""
        before = store_bytes(store) if os.path.isdir(store) else 0
        os.sync()
        time.sleep(0.2)  # what changed just now would be read again by the next backup
        argv = (["taskset", "-c", str(self.a.cpu)] if one_core else []) + [self.exe, *args, "--store", store]
        row = self.command(title, argv, stdout=os.devnull)
        row |= {"mb_per_second": size / row["seconds"] / 1e6, "added": store_bytes(store) - before}
        return self.add(row)

    def restore(self, title, store, size):
        """Restore the last snapshot and compare every file of the pack directory."""
        target = self.at("restored")
        row = self.measure(title, store, "restore", "latest", "--target", target, size=size)
        folder = os.path.join(self.repo, "objects", "pack")
        for leaf in os.listdir(folder):
            if subprocess.run(["cmp", os.path.join(folder, leaf), target + os.path.join(folder, leaf)]).returncode:
                self.fail(f"{title}: the restored {leaf} differs")
        shutil.rmtree(target, ignore_errors=True)
        return row

    def run(self):
        self.create_repo()
        place = lambda name: self.at("stores", name)
        source = os.path.dirname(self.repo)
        for name in ("first", "fresh"):
            subprocess.run([self.exe, "init", "--store", place(name)], check=True, stdout=subprocess.DEVNULL)
        size = self.put_pack()
        self.measure("first backup", place("first"), "backup", source, size=size)
        copy_store(place("first"), place("one"))
        changes = [f"--{name}={getattr(self.a, name)}" for name in ("new", "dropped", "run", "moved")]
        size = self.put_pack("--repacked", *changes)
        self.measure("repacked, one core", place("one"), "backup", source, size=size, one_core=True)
        self.measure("repacked, all cores", place("first"), "backup", source, size=size)
        if not self.a.no_restore:
            shutil.rmtree(place("one"))
            self.measure("the same into a fresh store", place("fresh"), "backup", source, size=size)
            fresh = self.restore("restore, fresh store", place("fresh"), size)
            shutil.rmtree(place("fresh"))
            rebuilt = self.restore("restore, repacked", place("first"), size)
            self.ratio = rebuilt["seconds"] / fresh["seconds"]
        self.size = size

    def line(self, row):
        return (f"| {row['what']} | {row['peak_mib']:.0f} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} "
                f"| {row['mb_per_second']:.0f} | {row['added'] / 1e6:,.1f} |")

    def title(self):
        return f"A repacked pack of {self.a.objects:,} objects; with its index {self.size / 1e6:,.0f} MB."

    def remarks(self):
        if self.a.no_restore:
            return []
        return [f"\nThe repacked snapshot takes {self.ratio:.2f} times as long to restore as the fresh store's."]

    def figures(self):
        return super().figures() | {"bytes": self.size}


def main():
    ap = arguments(__doc__, "repository and stores")
    ap.add_argument("--bytes", type=number, default=number("5G"), help="bytes of the first pack (default: 5G)")
    ap.add_argument("--objects", type=number, default=number("10M"), help="objects in it (default: 10M)")
    ap.add_argument("--new", type=int, default=20, help="new objects of the second night, in thousandths (default: 20)")
    ap.add_argument("--dropped", type=int, default=5, help="objects it lacks, in thousandths (default: 5)")
    ap.add_argument("--run", type=int, default=60, help="mean length of runs of objects that keep their order (default: 60)")
    ap.add_argument("--moved", type=int, default=250, help="runs that go elsewhere, in thousandths (default: 250)")
    ap.add_argument("--seed", type=int, default=1, help="what is drawn from (default: 1)")
    ap.add_argument("--cpu", type=int, default=0, metavar="N", help="the core of the one-core run (default: 0)")
    ap.add_argument("--no-restore", action="store_true", help="only the backups")
    ap.add_argument("--generator", default=os.path.join(TARGET, "large-pack"), metavar="FILE")
    LargePack(ap.parse_args()).main()


if __name__ == "__main__":
    main()
