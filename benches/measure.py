"""Run commands one after the other and measure memory and time of each."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time

# Commits without anything of this machine.
GIT = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
       "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
TARGET = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "target", "release")


def arguments(description, work):
    """Return a parser for the common arguments; `work` describes the use of the work directory."""
    ap = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--work", required=True, metavar="DIR", help=f"a new directory for {work}; removed at the end")
    ap.add_argument("--limit-mib", type=int, default=256, help="memory no command may exceed (default: 256)")
    ap.add_argument("--forgekeep", default=os.path.join(TARGET, "forgekeep"), metavar="FILE")
    ap.add_argument("--markdown", metavar="FILE", help="write the table (also printed)")
    ap.add_argument("--json", metavar="FILE", help="write unrounded figures")
    ap.add_argument("--keep", action="store_true", help="do not remove what is in --work")
    return ap


def choice(ap, names):
    """Read the arguments; `--only` chooses some of these names, and `None` is all of them."""
    a = ap.parse_args()
    a.only = a.only.split(",") if a.only else None
    unknown = [name for name in a.only or [] if name not in names]
    if unknown:
        ap.error(f"unknown: {', '.join(unknown)}")
    return a


def git(folder, *args, feed=None):
    """Run git in a directory; return its output."""
    return subprocess.run(["git", "-C", folder, *args], env=GIT, input=feed, check=True, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL).stdout


class Bench:
    """A benchmark. A script defines the measurements in `run`, and its table with `title`, `head` and `line`."""

    def __init__(self, args):
        self.a = args
        self.work = os.path.abspath(args.work)
        self.exe = os.path.abspath(args.forgekeep)
        self.logs = self.at("logs")
        self.rows, self.bad = [], []

    def at(self, *names):
        return os.path.join(self.work, *names)

    def command(self, title, argv, feed=None, stdout=None, codes=(0,)):
        """Run one command; `feed` is a command whose output it reads. Return a row for the table.

        The kernel counts the pages of the parent process for a child until the child
        executes its own program. Values below this script's own size of about 15 MiB
        are therefore not visible. That is far below any limit of interest.
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
        if p.returncode not in codes:
            with open(log, errors="replace") as f:
                self.fail(f"{title}: exit code {p.returncode}: {f.read()[-300:].strip()}")
        if mib > self.a.limit_mib:
            self.fail(f"{title}: {mib:.0f} MiB are more than {self.a.limit_mib}")
        return {"what": title, "peak_mib": mib, "seconds": wall, "cpu_seconds": use.ru_utime + use.ru_stime}

    def fail(self, why):
        self.bad.append(why)
        print("  " + why, file=sys.stderr, flush=True)

    def add(self, row):
        """Add a row to the table."""
        self.rows.append(row)
        print(self.line(row), file=sys.stderr, flush=True)
        return row

    def remarks(self):
        """Return the lines below the table."""
        return []

    def report(self):
        head = [self.title() + "\n", "| " + " | ".join(self.head) + " |", "|---|" + "---:|" * (len(self.head) - 1)]
        out = head + [self.line(row) for row in self.rows] + self.remarks()
        if self.bad:
            out += ["\nNot as it should be:\n"] + [f"- {why}" for why in self.bad]
        return "\n".join(out) + "\n"

    def figures(self):
        """Return the results for programs."""
        return {"options": vars(self.a), "rows": self.rows, "bad": self.bad}

    def main(self):
        """Measure everything and report it. Exit with 1 if a result is wrong."""
        if os.path.isdir(self.work) and os.listdir(self.work):
            sys.exit(f"{self.work} is not empty")
        os.makedirs(self.logs)
        self.run()
        text = self.report()
        print(text)
        if self.a.markdown:
            with open(self.a.markdown, "w") as f:
                f.write(text)
        if self.a.json:
            with open(self.a.json, "w") as f:
                json.dump(self.figures(), f, indent=2)
        if not self.a.keep:
            shutil.rmtree(self.work)
        sys.exit(1 if self.bad else 0)
