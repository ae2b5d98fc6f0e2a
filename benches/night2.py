#!/usr/bin/env python3
"""Turn a corpus into the night after: pushes, housekeeping, uploads, a new dump.

In a share of the repositories new commits arrive; then all repositories are
repacked into one pack with a bitmap, their refs packed, their commit graph
written anew, as a forge's weekly housekeeping does. One per cent of uploads is
added, and the dump and LFS objects in CORPUS.night2 replace or join the old
ones. The corpus is changed in place; a copy made with `cp -a` can be given
together with --later.
"""

import argparse
import concurrent.futures
import os
import random
import shutil
import subprocess
import sys

import forge


def housekeeping(corpus, rel, seed, share, vocabulary, full, env):
    repo = os.path.join(corpus, rel)
    rng = random.Random(f"night {seed} {rel}")
    words = forge.Words.__new__(forge.Words)
    words.__dict__.update(vocabulary.__dict__, rng=rng)
    if rng.random() < share:
        head = forge.git(repo, "symbolic-ref", "HEAD", env=env).decode().strip()
        tip = forge.git(repo, "rev-parse", head, env=env).decode().strip()
        stream, mark = forge.commits(words, rng, head, tip, rng.randint(1, 6), forge.EPOCH + 3600, 1)
        number = rng.randint(2000, 9000)
        stream += b"reset refs/merge-requests/%d/head\nfrom :%d\n\n" % (number, mark)
        forge.git(repo, "fast-import", "--quiet", data=stream, env=env)
    forge.git(repo, "pack-refs", "--all", env=env)
    forge.git(repo, "repack", "-a", "-d", "-b", "-q", *(["-f"] if full else []), env=env)
    if os.path.exists(os.path.join(repo, "objects/info/commit-graphs")):
        forge.git(repo, "commit-graph", "write", "--reachable", "--split=replace", "--no-progress", env=env)
    forge.set_owners(corpus, rel)


def main():
    ap = argparse.ArgumentParser(prog="night2.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("corpus", metavar="CORPUS")
    ap.add_argument("--later", metavar="DIR", help="what corpus.sh left for night two (default: CORPUS.night2)")
    ap.add_argument("--share", type=float, default=0.2, help="share of repositories with new commits (default: 0.2)")
    ap.add_argument("--full", action="store_true", help="compute all deltas anew (git repack -f)")
    ap.add_argument("--seed", type=int, default=2)
    ap.add_argument("--jobs", type=int, default=os.cpu_count())
    a = ap.parse_args()
    corpus = os.path.abspath(a.corpus)
    later = os.path.abspath(a.later or corpus + ".night2")
    if not os.path.isdir(os.path.join(later, "db")):
        raise SystemExit(f"no {later}/db: is {corpus} made by corpus.sh?")
    os.umask(0o022)
    env = forge.git_env(later)

    repos = []
    for path, dirs, _ in os.walk(os.path.join(corpus, "repositories")):
        dirs.sort()
        if path.endswith(".git"):
            repos.append(os.path.relpath(path, corpus))
            dirs.clear()
    print(f"housekeeping in {len(repos)} repositories", file=sys.stderr)
    vocabulary = forge.Words("night two")
    with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
        for _ in pool.map(lambda r: housekeeping(corpus, r, a.seed, a.share, vocabulary, a.full, env), repos):
            pass

    words = forge.Words(f"uploads of night {a.seed}")
    old = int(subprocess.run(["sh", "-c", 'find "$1" -type f | wc -l', "sh", os.path.join(corpus, "uploads")],
                             stdout=subprocess.PIPE).stdout)
    for rel, data in forge.uploads(words, words.rng, len(repos), max(1, old // 100)):
        forge.put(os.path.join(corpus, "uploads", rel), data)
    shutil.rmtree(os.path.join(corpus, "db"))
    for top in ("db", "lfs-objects"):
        shutil.copytree(os.path.join(later, top), os.path.join(corpus, top), dirs_exist_ok=True)
    for top in ("uploads", "db", "lfs-objects"):
        forge.set_owners(corpus, top)
    forge.print_counts(corpus)


if __name__ == "__main__":
    main()
