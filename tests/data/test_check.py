"""The check: all faults at once, each image read in full; before a training, quickly, the first."""

import shutil

import numpy as np
import pytest
from PIL import Image

from wsss_lib.data import VOCFolder, check_split, write_mask
from wsss_lib.data.check import check, survey
from wsss_lib.errors import DataError


def halve(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def lines(root):
    return [f"{fault.file.relative_to(root)}: {fault.problem}" for fault in check(root)]


def test_a_sound_folder_has_no_faults_and_is_counted(voc):
    splits, faults = survey(voc)
    assert faults == []
    assert {name: counts[:2] for name, counts in splits.items()} == {"train": (3, 3), "val": (1, 1)}
    assert splits["train"].classes == {"cat": 2, "dog": 1}


def test_missing_masks_are_no_fault_but_counted(make_voc):
    splits, faults = survey(make_voc(masks=False))
    assert faults == []
    assert splits["train"].masks == 0


def test_all_faults_are_listed_at_once(voc):
    halve(voc / "JPEGImages/a.jpg")
    (voc / "JPEGImages/b.jpg").unlink()
    (voc / "JPEGImages/d.jpg").write_bytes(b"")
    write_mask(voc / "SegmentationClass/c.png", np.full((16, 20), 3))
    (voc / "ImageSets/Segmentation/train.txt").write_text("a\nb\nc\nb\nx/y\n")
    (voc / "ImageSets/Segmentation/test.txt").write_text("\n")
    (voc / "ImageSets/Segmentation/odd.txt").write_bytes(b"\xff\xfe\x80")
    (voc / "labels.csv").write_text("image_id,classes\na,cat\nb,cow dgo\nb,dog\nd,\n")
    (voc / "classes.txt").write_text("cat\ndog\ndog")
    assert sorted(lines(voc)) == [
        "ImageSets/Segmentation/odd.txt: not UTF-8 text",
        "ImageSets/Segmentation/test.txt: empty split",
        "ImageSets/Segmentation/train.txt: 'x/y' is a path",
        "ImageSets/Segmentation/train.txt: id b twice",
        "JPEGImages/a.jpg: truncated image",
        "JPEGImages/b.jpg: no such image",
        "JPEGImages/d.jpg: empty file",
        "classes.txt: class dog twice",
        "labels.csv: id b twice",
        "labels.csv: id b: unknown class cow",
        "labels.csv: id b: unknown class dgo",
        "labels.csv: no label for id c",
    ]


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: write_mask(path, np.zeros((20, 16), int)), "mask of 16 x 20, image of 20 x 16 pixels"),
        (
            lambda path: write_mask(path, np.full((16, 20), 254)),
            "mask has the value 254, classes go from 0 to 2",
        ),
        (lambda path: Image.new("RGB", (20, 16)).save(path), "mask of mode RGB stores no class indices"),
        (halve, "truncated mask"),
    ],
    ids=["size", "value", "colours", "truncated"],
)
def test_faults_of_masks_are_found_by_the_check_and_before_scoring(voc, spoil, problem):
    spoil(voc / "SegmentationClass" / "c.png")
    (fault,) = check(voc)
    assert str(fault).startswith(f"{voc / 'SegmentationClass' / 'c.png'}: {problem}")
    folder = VOCFolder(voc)
    check_split(folder, folder.split("train"))
    with pytest.raises(DataError, match=problem):
        check_split(folder, folder.split("train"), masks=True)


def test_wrong_columns_are_one_fault_not_one_an_image(voc):
    (voc / "labels.csv").write_text("id,names\na,cat\n")
    assert lines(voc) == ["labels.csv: no column image_id and classes (has: id, names)"]


def test_labels_that_are_not_text_are_a_fault(voc):
    (voc / "labels.csv").write_bytes(b"image_id,classes\na,\xff\xfe\n")
    assert lines(voc) == ["labels.csv: not UTF-8 text"]


def test_classes_that_are_not_text_are_a_fault(voc):
    (voc / "classes.txt").write_bytes(b"\xff\xfe\x80")
    assert "classes.txt: not UTF-8 text" in lines(voc)


def test_annotations_are_checked_where_there_is_no_csv(make_voc):
    root = make_voc(labels=None)
    assert lines(root) == [".: no image-level labels (neither labels.csv nor image_level_labels.csv nor Annotations)"]
    (root / "Annotations").mkdir()
    for image_id, text in {
        "a": "<annotation/>",
        "b": "<annotation>",
        "c": "<a><object><name>cow</name></object></a>",
    }.items():
        (root / "Annotations" / f"{image_id}.xml").write_text(text)
    assert [line.split(" (")[0] for line in lines(root)] == [
        "Annotations/b.xml: broken XML",
        "Annotations/c.xml: id c: unknown class cow",
        "Annotations/d.xml: no such annotation",
    ]


def test_a_folder_without_splits_is_a_fault(voc):
    for path in (voc / "ImageSets/Segmentation").iterdir():
        path.unlink()
    assert lines(voc) == ["ImageSets/Segmentation: no splits"]


def test_what_is_not_in_voc_layout_cannot_be_checked(tmp_path):
    with pytest.raises(DataError, match="not in VOC layout: no JPEGImages in it, nor in VOCdevkit/VOC2012"):
        check(tmp_path)


def test_the_quick_check_names_the_first_fault_and_counts_the_others(voc):
    halve(voc / "JPEGImages/a.jpg")
    (voc / "JPEGImages/c.jpg").write_bytes(b"no image")
    folder = VOCFolder(voc)
    with pytest.raises(DataError, match=r"^\S*a\.jpg: truncated image -> copy .* \(and 1 more\)$"):
        check_split(folder, folder.split("train"))
    check_split(folder, folder.split("val"))


def test_the_quick_check_does_not_decode_sound_images(voc, monkeypatch):
    def refuse(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("wsss_lib.data.check.read_pixels", refuse)
    folder = VOCFolder(voc)
    check_split(folder, folder.split("train"))


def test_bytes_behind_an_images_end_are_no_fault(voc):
    path = voc / "JPEGImages/a.jpg"
    path.write_bytes(path.read_bytes() + bytes(100))
    folder = VOCFolder(voc)
    check_split(folder, folder.split("train"))
    assert check(voc) == []


def test_an_image_without_its_mask_is_found_before_scoring(voc):
    (voc / "SegmentationClass/b.png").unlink()
    folder = VOCFolder(voc)
    with pytest.raises(DataError, match=r"b\.png: no such mask"):
        check_split(folder, folder.split("train"), masks=True)


def test_the_check_needs_no_labels_of_images_outside_the_splits(make_voc):
    root = make_voc(labels={"a": "cat", "b": "", "c": "", "d": "dog", "elsewhere": "cat"})
    assert check(root) == []


def test_a_folder_is_not_changed_by_a_check(voc):
    before = {path: path.stat().st_mtime_ns for path in voc.rglob("*")}
    check(voc)
    assert {path: path.stat().st_mtime_ns for path in voc.rglob("*")} == before


def test_a_read_only_copy_is_enough(voc, tmp_path):
    shutil.copytree(voc, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert check(tmp_path / "copy") == []


@pytest.mark.real
def test_the_photographs_have_no_fault(photos):
    splits, faults = survey(photos)
    assert faults == []
    assert [(name, *counts[:2]) for name, counts in splits.items()] == [
        ("train", 437, 437),
        ("val", 300, 300),
    ]
