"""A few rows of each published list, in the form in which it is published, and how tests read them."""

from __future__ import annotations

from pathlib import Path

from datar_jax.data.datasets import CORPORA
from datar_jax.data.datasets.base import Annotations, Segment

# A few rows of each list, in the form in which it is published.
CLASS_LABELS = """index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/05zppz,"Male speech, man speaking"
2,/m/02zsn,"Female speech, woman speaking"
3,/m/0ytgt,"Child speech, kid speaking"
4,/m/01h8n0,"Conversation"
"""


PUBLISHED = """# Segments csv created Sun Mar  5 10:56:58 2017
# num_ytids=3, num_segs=3, num_unique_labels=4, num_positive_labels=6
# YTID, start_seconds, end_seconds, positive_labels
"""


EPIC_HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)


SOUNDS_HEADER = (
    "annotation_id,participant_id,video_id,start_timestamp,stop_timestamp,start_sample,stop_sample,description,class,"
    "class_id\n"
)


LISTS: dict[str, dict[str, str]] = {
    "audioset": {
        "class_labels_indices.csv": CLASS_LABELS,
        "balanced_train_segments.csv": PUBLISHED + '-5-vmt2iKT0, 30.000, 40.000, "/m/02zsn,/m/09x0r"\n'
        '0150dZu3Na8, 0.000, 8.000, "/m/02zsn,/m/09x0r"\n'
        '2hBVVym00rc, 30.000, 40.000, "/m/01h8n0,/m/05zppz,/m/09x0r"\n',
        "eval_segments.csv": PUBLISHED + '--xphBsUEdQ, 30.000, 40.000, "/m/09x0r"\n',
    },
    "epic_kitchens": {
        "EPIC_100_verb_classes.csv": "id,key,instances,category\r\n0,take,\"['take', 'get']\",retrieve\r\n"
        "1,put,\"['put']\",leave\r\n2,wash,\"['wash']\",clean\r\n3,open,\"['open']\",access\r\n",
        "EPIC_100_noun_classes.csv": "id,key,instances,category\r\n0,tap,\"['tap']\",appliances\r\n"
        "1,spoon,\"['spoon']\",cutlery\r\n2,plate,\"['plate']\",crockery\r\n3,cupboard,\"['door']\",storage\r\n",
        "EPIC_100_train.csv": EPIC_HEADER + "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,"
        "open,3,door,3,['door'],[3]\n",
        "EPIC_100_validation.csv": EPIC_HEADER + "P01_11_0,P01,P01_11,00:00:00.560,00:00:00.00,00:00:01.89,1,113,"
        "take plate,take,0,plate,2,['plate'],[2]\n"
        "P01_11_1,P01,P01_11,00:00:01.700,01:02:01.56,01:02:02.45,93,147,put down plate,put-down,1,plate,2,"
        "\"['plate', 'tap']\",\"[2, 0]\"\n",
    },
    "epic_sounds": {
        "EPIC_Sounds_train.csv": SOUNDS_HEADER
        + "P01_11_1,P01,P01_11,00:00:03.065,00:00:14.447,73560,346728,paper rustle,rustle,1\n"
        "P01_11_2,P01,P01_11,00:00:16.706,00:00:32.406,400944,777744,paper rustle,rustle,1\n",
        "EPIC_Sounds_validation.csv": SOUNDS_HEADER
        + "P01_11_0,P01,P01_11,00:00:02.069,00:00:02.993,49656,71832,clang / clatter,ceramic / wood collision,0\n",
    },
    "esc50": {
        "meta/esc50.csv": "filename,fold,target,category,esc10,src_file,take\n"
        "1-100032-A-0.wav,1,0,dog,True,100032,A\n1-100038-A-14.wav,2,14,chirping_birds,False,100038,A\n"
        "1-100210-A-36.wav,5,36,vacuum_cleaner,False,100210,A\n",
    },
    "fsd50k": {
        "FSD50K.ground_truth/vocabulary.csv": "0,Bass_guitar,/m/018vs\n1,Electric_guitar,/m/02sgy\n2,Guitar,/m/0342h\n",
        "FSD50K.ground_truth/dev.csv": 'fname,labels,mids,split\n64760,"Electric_guitar,Guitar","/m/02sgy,/m/0342h",'
        'train\n345111,"Guitar,Bass_guitar","/m/0342h,/m/018vs",val\n5312,Guitar,/m/0342h,train\n',
        "FSD50K.ground_truth/eval.csv": 'fname,labels,mids\n37199,"Electric_guitar,Guitar","/m/02sgy,/m/0342h"\n',
    },
    "kinetics_sounds": {
        "my_train.txt": "--4-0ihtnBU_000058_000068,10,4\r\n-1IlTIWPN_4_000027_000037,10,23\r\n",
        "my_test.txt": "-3Mwkq-7TV4_2,10,23\r\n-74csnCOiUs_0,10,14\r\n",
    },
    "speech_commands": {
        "speech_commands_v0.02/validation_list.txt": "bed/026290a7_nohash_0.wav\n",
        "speech_commands_v0.02/testing_list.txt": "cat/0c40e715_nohash_0.wav\nbed/gone_nohash_0.wav\n",
        "speech_commands_v0.02/bed/026290a7_nohash_0.wav": "",
        "speech_commands_v0.02/bed/0c40e715_nohash_0.wav": "",
        "speech_commands_v0.02/bed/README.md": "",
        "speech_commands_v0.02/cat/0c40e715_nohash_0.wav": "",
        "speech_commands_v0.02/cat/026290a7_nohash_0.wav": "",
        "speech_commands_v0.02/cat/._026290a7_nohash_0.wav": "",
        "speech_commands_v0.02/_background_noise_/pink_noise.wav": "",
    },
    "vggsound": {
        "vggsound.csv": "---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,waterfall burbling,train\n"
        '--Lj4Y_96f0,120,"bee, wasp, etc. buzzing",train\n',
        "stat.csv": 'waterfall burbling,1050,nature\r\n"bee, wasp, etc. buzzing",600,animals\r\n'
        "people marching,500,people\r\nzebra braying,400,animals\r\n",
    },
}


def put(folder: Path, files: dict[str, str], **changed: str) -> Path:
    """Writes lists; `changed` is by stem: other text, or "" for a list that is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        text = changed.get(Path(name).stem, text) if name.endswith((".csv", ".txt")) else text
        if text or not name.endswith((".csv", ".txt")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(text.encode())
    return folder


def read(name: str, folder: Path, **changed: str) -> Annotations:
    return CORPORA[name].read(put(folder, LISTS[name], **changed))


def said(listing: Annotations) -> dict[str, tuple[object, ...]]:
    """What the lists say of each segment, by whatever list and line."""
    return {
        s.id: (tuple(name for h in listing.heads for name in h.classes)[s.labels[0]], s.labels, *where(s))
        for s in listing.segments
    }


def where(s: Segment) -> tuple[object, ...]:
    return s.split, s.fold, s.recording, s.start, s.end, s.naming
