#!/usr/bin/env python3
"""Measure the peak memory of every command on a store with very many chunks.

Makes a synthetic store (10 million tiny chunks in real segments and a snapshot that
names all of them), runs every command that opens a store on it, and prints how much
memory each took at most. Ends with 1 if one took more than the limit, or failed.

A store of 10 million chunks needs about 10 GB in --work beside three times the size
of --tree, and up to an hour. Try it with --chunks 100000 first.
"""

import json
import os
import subprocess

from measure import TARGET, Bench, arguments


class Memory(Bench):
    head = ["command", "peak MiB", "seconds"]

    def __init__(self, args):
        super().__init__(args)
        self.tree = os.path.abspath(args.tree)
        self.store = self.at("store")

    def measure(self, title, argv, **options):
        self.add(self.command(title, argv, **options))

    def keep(self, title, *args, **options):
        """Measure one command of forgekeep on the store."""
        self.measure(title, [self.exe, *args, "--store", self.store], **options)

    def newest(self):
        """Return the id of the newest snapshot."""
        out = subprocess.run([self.exe, "snapshots", "--json", "--store", self.store], check=True, stdout=subprocess.PIPE).stdout
        return json.loads(out.splitlines()[-1])["id"]

    def moved(self, share):
        """Move a share of the segments out of the store. Return a function that moves them back."""
        folder, aside = os.path.join(self.store, "segments"), self.at("aside")
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
        self.measure("writing the chunks (the packer alone)", [os.path.abspath(self.a.synthetic), self.store, "--chunks", str(self.a.chunks)])
        synthetic = self.newest()
        self.measure("`init` (another store)", [self.exe, "init", "--store", self.at("empty")])
        self.keep("`snapshots`", "snapshots")
        self.keep("`backup` of a tree, first", "backup", self.tree)
        self.keep("`backup`, nothing changed", "backup", self.tree)
        tree = self.newest()
        self.keep("`backup`, everything read again", "backup", "--force", "--dry-run", self.tree)
        self.keep("`ls -l`, the synthetic snapshot", "ls", "-l", synthetic)
        self.keep("`ls -l`, the tree", "ls", "-l", tree)
        self.keep("`find`", "find", "*5")
        self.keep("`diff`, nothing in common", "diff", synthetic, tree)
        self.keep("`diff`, nothing different", "diff", "latest~1", "latest", "--path", self.tree)
        self.keep("`dump` of a file of a tenth of the chunks", "dump", synthetic + ":/large", stdout=os.devnull)
        self.keep("`restore`, the synthetic snapshot", "restore", synthetic, "--target", self.at("restored"))
        self.keep("`restore`, nothing to do", "restore", synthetic, "--target", self.at("restored"))
        self.keep("`restore`, the tree", "restore", tree, "--target", self.at("tree"))
        self.keep("`backup` of a stream", "backup", "--stdin-name", "stream.tar", feed=["tar", "-cf", "-", "-C", self.tree, "."])
        self.keep("`dump` of the stream", "dump", self.newest() + ":/stream.tar", stdout=os.devnull)
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

    def title(self):
        return (f"Peak memory (resident set) of every command on a store with {self.a.chunks:,} chunks; "
                f"the limit is {self.a.limit_mib} MiB.")

    def line(self, row):
        return f"| {row['what']} | {row['peak_mib']:.0f} | {row['seconds']:.1f} |"


def main():
    ap = arguments(__doc__, "the store and all else")
    ap.add_argument("--tree", default="/usr/share", metavar="DIR", help="what is backed up into the store (default: /usr/share)")
    ap.add_argument("--chunks", type=int, default=10_000_000, help="chunks in the synthetic store (default: 10 million)")
    ap.add_argument("--synthetic", default=os.path.join(TARGET, "synthetic-store"), metavar="FILE")
    Memory(ap.parse_args()).main()


if __name__ == "__main__":
    main()
