#!/usr/bin/env python3
"""Reads TensorBoard event files with TensorBoard's own reader and lists what it finds.

    python3 -m venv venv && venv/bin/pip install tensorboard pillow
    venv/bin/python scripts/check-tensorboard.py FOLDER_OR_FILE [scalars] [images]

The two numbers are how many scalar and picture tags there must be at least. Fails on a damaged file, and where the steps
of a tag do not rise.
"""
import io
import sys
from pathlib import Path

from PIL import Image
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def count_records(path):
    """The records of a file one by one: the accumulator below would end quietly at a damaged one."""
    end = sum(1 for _ in event_file_loader.RawEventFileLoader(str(path)).Load())
    size = read = 0
    data = path.read_bytes()
    while size < len(data):
        size += 16 + int.from_bytes(data[size : size + 8], "little")
        read += 1
    if size != len(data) or read != end:
        sys.exit(f"FAILED: {path}: TensorBoard reads {end} records, the file has {read}")
    return read


def main():
    place = Path(sys.argv[1])
    files = [place] if place.is_file() else sorted(place.glob("**/*tfevents*"))
    if not files:
        sys.exit(f"FAILED: no event file in {place}")
    for path in files:
        print(f"{path}: {count_records(path)} records")
    events = EventAccumulator(str(place), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    for tag in tags["scalars"]:
        rows = events.Scalars(tag)
        print(f"scalar {tag}: {len(rows)} values, steps {rows[0].step} to {rows[-1].step}, last {rows[-1].value:g}")
        check_rising(tag, rows)
    for tag in tags["images"]:
        rows = events.Images(tag)
        for row in rows:
            with Image.open(io.BytesIO(row.encoded_image_string)) as picture:
                picture.load()
                assert picture.size == (row.width, row.height), tag
        print(f"image {tag}: {len(rows)} pictures, steps {rows[0].step} to {rows[-1].step}, {row.width} x {row.height}")
        check_rising(tag, rows)
    for kind, wanted in zip(("scalars", "images"), map(int, sys.argv[2:])):
        if len(tags[kind]) < wanted:
            sys.exit(f"FAILED: {len(tags[kind])} tags of {kind}, {wanted} expected")
    print("ok")


def check_rising(tag, rows):
    steps = [row.step for row in rows]
    if any(b <= a for a, b in zip(steps, steps[1:])):
        sys.exit(f"FAILED: {tag}: steps do not rise: {steps}")


main()
