#!/usr/bin/env python3
"""Restores a Forgekeep snapshot without Forgekeep: restore.py STORE SNAPSHOT TARGET

Needs Python 3.8 and the programs zstd and b3sum. SNAPSHOT is the beginning of a name in
STORE/snapshots; TARGET must not exist. docs/format.md describes the format.
Damage is reported and the rest restored; the exit status is then 1.
"""
import os, stat, sys, tempfile
from struct import iter_unpack, unpack
from subprocess import PIPE, run

DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
NODES = {4: stat.S_IFIFO, 5: stat.S_IFSOCK, 6: stat.S_IFCHR, 7: stat.S_IFBLK}
failures = 0

def failed(what, why):
    global failures
    failures += 1
    print(f"{os.fsdecode(what)!r}: {why!r}", file=sys.stderr)

def cbor(data, at=0):
    """The value that begins at data[at], and where the next one begins."""
    major, n, at = data[at] >> 5, data[at] & 31, at + 1
    if n > 27 or major == 6:
        raise ValueError("not CBOR as Forgekeep writes it")
    if n > 23:
        width = 1 << (n - 24)
        n, at = int.from_bytes(data[at : at + width], "big"), at + width
    if major in (2, 3):  # bytes, text
        if at + n > len(data):
            raise ValueError("cut off")
        return data[at : at + n], at + n
    if major in (4, 5):  # array, map
        items = []
        for _ in range(n * (major - 3)):
            item, at = cbor(data, at)
            items.append(item)
        return (items if major == 4 else dict(zip(items[::2], items[1::2]))), at
    return {0: n, 1: -1 - n, 7: {20: False, 21: True}.get(n)}[major], at

class Chunks:
    """All chunks of the segments whose bytes match their names."""
    def __init__(self, store):
        self.place, self.open = {}, {}
        for name in sorted(os.path.join(d, f) for d, _, files in os.walk(store) for f in files):
            digest = run(["b3sum", "--no-names", name], stdout=PIPE, text=True).stdout.strip()
            if digest != os.path.basename(name):
                failed(name, "its bytes do not match its name; skipping it")
                continue
            with open(name, "rb") as file:
                if unpack("<16xHxB", file.read(20)) != (2, 0):
                    failed(name, "a newer version of Forgekeep wrote it")
                    continue
                file.seek(-56, os.SEEK_END)  # the trailer
                offset, rows = unpack("<16x2I32x", file.read())
                file.seek(offset + 16)  # the table, after magic, length and tag
                plain = 0
                for id, _, _, plain_len in iter_unpack("<32s3I", file.read(44 * rows)):
                    self.place[id] = (name, plain, plain_len)
                    plain += plain_len  # zstd prints the chunks one after the other

    def get(self, id, start=0, most=1 << 32):
        """The bytes of a chunk, or at most so many of them from one on."""
        if id not in self.place:
            raise ValueError(f"chunk {id.hex()} is in no intact segment")
        name, offset, length = self.place[id]
        file = self.open.pop(name, None)
        if not file:
            if len(self.open) >= 16:  # so many segments lie decompressed in temporary files
                self.open.pop(next(iter(self.open))).close()
            file = tempfile.TemporaryFile()
            run(["zstd", "-qdc", name], stdout=file, check=True)
        self.open[name] = file  # the last one used goes last
        return os.pread(file.fileno(), max(0, min(most, length - start)), offset + start)

def read_snapshot(directory, prefix):
    """The record; each half of its file is one copy."""
    found = [name for name in os.listdir(directory) if name.startswith(prefix)]
    if len(found) != 1:
        names = ", ".join(sorted(found))
        fault = f"{prefix} is ambiguous: {len(found)} snapshots ({names})"
        sys.exit(fault if found else f"no snapshot {prefix}")
    with open(os.path.join(directory, found[0]), "rb") as file:
        both = file.read()
    for half in (both[: len(both) // 2], both[len(both) // 2 :]):
        plain = run(["zstd", "-qdc"], input=half, stdout=PIPE).stdout
        if run(["b3sum"], input=plain, stdout=PIPE).stdout[:64].decode() == found[0]:
            return cbor(plain)[0]
    sys.exit(f"both copies of snapshot {found[0]} are damaged")

def entries(chunks, page, first=b""):
    """Path, owner and fields of all entries of a page and those below it."""
    try:
        _, level, *rest = cbor(chunks.get(page))[0]
    except Exception as error:
        return failed(first, f"from here on entries are lost: {error}")
    for first, child, *_ in rest[0] if level else ():
        yield from entries(chunks, child, first)
    path = b""
    for entry in () if level else rest[1]:
        try:  # an entry begins with bytes of the path before it, which may be lost
            before, path = path, None
            path = (before[: entry[0]] if entry.get(0) else b"") + entry[1]
            owner = rest[0][entry[4]]
        except Exception as error:
            failed(path or first, f"an entry is lost: {error!r}")
        else:
            yield path, owner, entry

def varints(column):
    """The numbers of a column, seven bits a byte, the lowest first."""
    number = shift = 0
    for byte in column:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield number
            number = shift = 0

def columns(ids, which, offsets, lengths):
    """The extents of a recipe chunk in columns; the last two are in the order of chunks."""
    which, offsets, lengths = list(varints(which)), varints(offsets), varints(lengths)
    found, last, end = [()] * len(which), 0, 0
    for place in sorted(range(len(which)), key=which.__getitem__):
        number, length, offset = which[place], next(lengths), 0
        if number:
            step = next(offsets)
            offset = (end if number == last else 0) + (-(step + 1) // 2 if step & 1 else step // 2)
            last, end = number, offset + length
        found[place] = (ids[32 * number - 32 : 32 * number], length, offset) if number else (length,)
    return found

def extents(chunks, recipe, level):
    """The extents of a file, down through recipe chunks."""
    if level > 3:
        raise ValueError("a recipe of too many levels")
    for extent in recipe:
        if level:
            group = cbor(chunks.get(extent[0]))[0]
            in_columns = group and isinstance(group[0], bytes)
            yield from extents(chunks, columns(*group) if in_columns else group, level - 1)
        else:
            yield extent

def enter(target, parts):
    """Goes into a directory below target, never through a symbolic link."""
    os.chdir(target)
    for part in parts:
        if not os.path.lexists(part):  # its entry is lost
            os.mkdir(part, 0o700)
        fd = os.open(part, DIR)
        os.fchdir(fd)
        os.close(fd)

def write_file(chunks, name, entry):
    with open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", 0) as file:
        file.truncate(entry.get(8, 0))
        file.write(entry.get(13, b""))
        at = 0
        for extent in extents(chunks, entry.get(14, []), entry.get(15, 0)):
            if len(extent) > 1:  # not a hole
                id, length, offset = (*extent, 0)[:3]
                data = chunks.get(id, offset, length)
                if os.pwrite(file.fileno(), data, at) != length:
                    raise ValueError("a slice could not be written completely")
            at += extent[len(extent) > 1]

def make(chunks, target, path, name, owner, entry, links):
    """Makes one entry here; true if it is another name of one that has its metadata already."""
    kind = entry[2]
    others = (0, 1, 4, 6, 10, 16) + ((13, 14, 15) if 5 in entry else ())
    same = sorted((k, v) for k, v in entry.items() if k not in others)
    inode = repr((entry[10][0], owner, same)) if 10 in entry else None
    if inode in links:
        here = os.open(".", DIR)
        try:
            enter(target, links[inode][:-1])
            os.link(links[inode][-1], name, dst_dir_fd=here, follow_symlinks=False)
        finally:
            os.close(here)
        return True
    if kind == 1:
        try:
            write_file(chunks, name, entry)
        except BaseException as error:
            if not isinstance(error, FileExistsError):
                os.unlink(name)  # never leave a file with wrong content
            raise
    elif kind == 2:
        os.mkdir(name, 0o700)
    elif kind == 3:
        os.symlink(entry[9], name)
    else:
        os.mknod(name, NODES[kind] | 0o600, os.makedev(*entry.get(12, (0, 0))))
    if inode:
        links[inode] = path.split(b"/")

def set_metadata(name, owner, entry):
    """Owner, mode, attributes, time: in this order, each undoes parts of the ones after it."""
    if os.geteuid() == 0:
        os.chown(name, owner[0], owner[1], follow_symlinks=False)
    if entry[2] != 3:
        os.chmod(name, entry[3])
    attributes = entry.get(11, [])
    for key, value in zip(attributes[::2], attributes[1::2]):
        try:
            os.setxattr(name, key, value, follow_symlinks=False)
        except OSError as error:
            failed(name, f"attribute {key}: {error}")
    if 5 in entry:
        os.utime(name, ns=(entry[5][0] * 10**9 + entry[5][1],) * 2, follow_symlinks=False)

def main(store, prefix, target):
    store, target = os.path.abspath(store), os.fsencode(os.path.abspath(target))
    snapshot = read_snapshot(os.path.join(store, "snapshots"), prefix)
    chunks, links, directories = Chunks(os.path.join(store, "segments")), {}, []
    os.mkdir(target)
    for path, owner, entry in entries(chunks, snapshot[7]):
        *above, name = parts = path.split(b"/")
        try:
            if not {b"", b".", b".."}.isdisjoint(parts):
                raise ValueError("a path that no entry can have")
            enter(target, above)
            if make(chunks, target, path, name, owner, entry, links):
                continue
            if entry[2] == 2:  # its metadata would be in the way of what goes into it
                directories.append((above, name, owner, entry))
            else:
                set_metadata(name, owner, entry)
        except Exception as error:
            failed(path, error)
    for above, name, owner, entry in reversed(directories):
        try:
            enter(target, above)
            set_metadata(name, owner, entry)
        except Exception as error:
            failed(name, error)
    sys.exit(1 if failures else 0)

if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 4 else sys.exit(__doc__)
