"""What commands offer before anything is read: names of data sets, splits and decoders, importable at once."""

from typing import Literal


# Folders of files.
FolderName = Literal[
    "ava", "ucf101_24", "jhmdb_21", "multisports", "custom", "parquet", "demo", "demo_ucf101_24", "demo_jhmdb_21"
]
DatasetName = Literal[FolderName, "shards"]
SPLITS = ("train", "validation")
# Those with tubes and a way of counting that numbers were published in.
TubeDatasetName = Literal["ucf101_24", "jhmdb_21", "multisports"]
# How tubes are linked and counted.
ProtocolName = Literal["standard", "classquery_ucf", "classquery_jhmdb"]
Backend = Literal["auto", "pyav", "decord"]
