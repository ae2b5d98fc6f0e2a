#!/usr/bin/env python3
"""Measure forget and prune: very many chunks, very many nights, and the same nights with restic.

The parts:
  chunks  a store of many chunks of 1 KiB in a hundred nights: `prune` with nothing to delete, after one
          night went, and after every second night went
  many    the same of the smallest chunks, for the time a chunk
  nights  real backups of a few repositories and files every night, with `prune` every 30 nights:
          what commands cost after 30 nights and after many
  peers   the same nights with restic: `forget --keep-last` and `prune` of both, and the bytes left
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time

from measure import TARGET, Bench, arguments, choice, git

PARTS = ("chunks", "many", "nights", "peers")
REPEATS = 7


def size(folder):
    """Return the bytes and the number of the files below a directory."""
    found = [os.lstat(os.path.join(base, leaf)).st_size for base, _, leaves in os.walk(folder) for leaf in leaves]
    return sum(found), len(found)


class Prune(Bench):
    head = ["command", "wall s", "CPU s", "peak MiB", "other figures"]

    def title(self):
        return "Forget and prune"

    def line(self, row):
        return f"| {row['what']} | {row['seconds']:.3f} | {row['cpu_seconds']:.3f} | {row['peak_mib']:.0f} | {row.get('more', '')} |"

    def keep(self, what, argv, **more):
        return self.add({**self.command(what, argv), **more})

    def own(self, *argv):
        return [self.exe, *argv, "--store", self.store]

    def quiet(self, argv, env=None):
        return subprocess.run(argv, check=True, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE).stdout.decode()

    def ids(self):
        """Return the ids of the snapshots, oldest first."""
        lines = self.quiet(self.own("snapshots", "--json")).splitlines()
        return [line["id"] for line in map(json.loads, lines) if line["message_type"] == "snapshot"]

    def run(self):
        for part in self.a.only or PARTS:
            self.store, self.source = self.at("store"), self.at("source")
            os.makedirs(self.source)
            try:
                getattr(self, part)()
            except subprocess.CalledProcessError as error:
                self.fail(f"{part}: {error} {(error.stderr or b'')[-300:]}")
            for folder in (self.store, self.source, self.at("target"), self.at("restic"), self.at("cache")):
                subprocess.run(["rm", "-rf", "--", folder], check=True)

    # --- very many chunks -------------------------------------------------------

    def chunks(self):
        self.synthetic("chunks", self.a.chunks, "--chunk-bytes", "1024")

    def many(self):
        self.synthetic("many", self.a.many)

    def synthetic(self, part, chunks, *more):
        subprocess.run([os.path.abspath(self.a.synthetic), self.store, "--chunks", str(chunks), "--nights", "100", *more],
                       check=True, stdout=subprocess.DEVNULL)
        count, (held, files) = f"{chunks:,} chunks", size(os.path.join(self.store, "segments"))
        self.keep(f"{part}: prune, nothing to delete", self.own("prune"), more=f"{count}, {files:,} segments, {held / 1e9:.1f} GB")
        ids = self.ids()
        self.quiet(self.own("forget", ids[50]))
        self.pruned(f"{part}: prune after one night of {len(ids)} went")
        self.quiet(self.own("forget", *(id for at, id in enumerate(ids) if at % 2 == 0 and at != 50)))
        self.pruned(f"{part}: prune after every second night went")
        self.quiet(self.own("forget", *(id for at, id in enumerate(ids[:-1]) if at % 2 == 1)))
        self.pruned(f"{part}: prune after all nights but one went")
        self.quiet(self.own("check"))

    def pruned(self, what):
        before = size(os.path.join(self.store, "segments"))
        row = self.command(what, self.own("prune"))
        after = size(os.path.join(self.store, "segments"))
        freed = f"{(before[0] - after[0]) / 1e6:,.1f} MB freed, {after[1]:,} of {before[1]:,} segments left"
        self.add({**row, "more": freed})

    # --- very many nights -------------------------------------------------------

    def tree(self):
        """Make ten repositories and 300 files."""
        dice = random.Random(7)
        for at in range(10):
            folder = os.path.join(self.source, f"{at:02d}.git")
            os.makedirs(folder)
            git(folder, "init", "-q", "--bare", ".")
            self.push(folder, dice)
        for at in range(300):
            folder = os.path.join(self.source, f"files-{at // 100}")
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, f"{at:03d}"), "wb") as f:
                f.write(dice.randbytes(4000))
        return dice

    def push(self, folder, dice):
        blob = git(folder, "hash-object", "-w", "--stdin", feed=dice.randbytes(3000)).strip()
        tree = git(folder, "mktree", feed=b"100644 blob %s\tfile\n" % blob).strip()
        commit = git(folder, "commit-tree", "-m", "m", tree).strip()
        git(folder, "update-ref", "refs/heads/main", commit)

    def night(self, dice):
        for _ in range(2):
            at = dice.randrange(300)
            with open(os.path.join(self.source, f"files-{at // 100}", f"{at:03d}"), "wb") as f:
                f.write(dice.randbytes(4000))

    def timed(self, what, argv, before=None):
        """Add the median of some runs; `before` prepares each."""
        rows = []
        for _ in range(REPEATS):
            if before:
                before()
            rows.append(self.command(what, argv))
        rows.sort(key=lambda row: row["seconds"])
        row = rows[len(rows) // 2]
        first = next((r for r in self.rows if r["what"].split(" after ")[0] == what.split(" after ")[0]), None)
        more = f"{row['seconds'] / first['seconds']:.2f} of the first" if first else ""
        self.add({**row, "more": more})

    def look(self, nights, dice):
        """Measure commands on the store as it is."""
        target = self.at("target")
        held, files = size(os.path.join(self.store, "segments"))
        after = f"after {nights:,} nights"
        self.timed(f"nights: ls latest {after}", self.own("ls", "latest"))
        self.timed(f"nights: backup of two new files {after}", self.own("backup", self.source), lambda: self.night(dice))
        self.timed(f"nights: snapshots {after}", self.own("snapshots"))
        self.timed(f"nights: find NAME {after}", self.own("find", "017"))
        self.timed(f"nights: restore of a repository {after}",
                   self.own("restore", f"latest:{self.source}/03.git", "--target", target),
                   lambda: shutil.rmtree(target, ignore_errors=True))
        self.timed(f"nights: check {after}", self.own("check"))
        self.rows[-1]["more"] += f" {files:,} segments, {held / 1e6:.1f} MB"

    def nights(self):
        dice = self.tree()
        self.quiet(self.own("init"))
        for night in range(1, self.a.nights + 1):
            self.night(dice)
            if night % 10 == 0:
                self.push(os.path.join(self.source, f"{night // 10 % 10:02d}.git"), dice)
            self.quiet(self.own("backup", self.source))
            if night == 30:
                self.look(night, dice)
            elif night % 30 == 0:
                self.quiet(self.own("prune"))
        self.keep("nights: the last prune", self.own("prune"))
        self.look(self.a.nights, dice)
        self.pruned_down()

    def pruned_down(self):
        self.keep("nights: forget --keep-last 30", self.own("forget", "--keep-last", "30"))
        self.pruned("nights: prune after that")

    # --- the same nights with restic ----------------------------------------------

    def peers(self):
        dice = random.Random(11)
        for at in range(5000):
            folder = os.path.join(self.source, f"{at // 100:02d}")
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, f"{at:04d}"), "wb") as f:
                f.write(dice.randbytes(100_000 if at % 10 == 0 else 10_000))
        env = {**os.environ, "RESTIC_PASSWORD": "a", "RESTIC_REPOSITORY": self.at("restic"), "RESTIC_CACHE_DIR": self.at("cache")}
        self.quiet(self.own("init"))
        self.quiet(["restic", "init"], env)
        for _ in range(self.a.peer_nights):
            for _ in range(100):
                at = dice.randrange(5000)
                with open(os.path.join(self.source, f"{at // 100:02d}", f"{at:04d}"), "wb") as f:
                    f.write(dice.randbytes(10_000))
            time.sleep(0.05)
            self.quiet(self.own("backup", self.source))
            self.quiet(["restic", "backup", "-q", self.source], env)
        os.environ.update(env)
        before = f"of {self.a.peer_nights} nights"
        for keep in (str(self.a.peer_nights - 1), "20"):
            held = size(self.store)[0], size(self.at("restic"))[0]
            self.keep(f"peers: forget --keep-last {keep} {before}", self.own("forget", "--keep-last", keep))
            row = self.command("peers: prune after it", self.own("prune"))
            self.add({**row, "more": f"{held[0] / 1e6:.1f} → {size(self.store)[0] / 1e6:.1f} MB"})
            row = self.command(f"peers: restic forget --keep-last {keep} --prune", ["restic", "forget", "-q", "--keep-last", keep, "--prune"])
            self.add({**row, "more": f"{held[1] / 1e6:.1f} → {size(self.at('restic'))[0] / 1e6:.1f} MB"})
        self.keep("peers: check", self.own("check"))
        self.keep("peers: restic check", ["restic", "check", "-q"])


def main():
    ap = arguments(__doc__, "sources and stores")
    ap.add_argument("--only", metavar="PART,...", help="these parts only")
    ap.add_argument("--chunks", type=int, default=10_000_000, help="chunks of 1 KiB (default: 10 million, 12 GB)")
    ap.add_argument("--many", type=int, default=10_000_000, help="chunks of the smallest size (default: 10 million)")
    ap.add_argument("--nights", type=int, default=3000)
    ap.add_argument("--peer-nights", type=int, default=100)
    ap.add_argument("--synthetic", default=os.path.join(TARGET, "synthetic-store"), metavar="FILE")
    Prune(choice(ap, PARTS)).main()


if __name__ == "__main__":
    sys.exit(main())
