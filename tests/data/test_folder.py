"""The folder: found where it lies, read as it is written, and each fault one line with its remedy."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_lib.data import VOCFolder, read_mask
from wsss_lib.errors import DataError

XML = "<annotation>{}</annotation>"
OBJECT = "<object><name>{}</name><difficult>{}</difficult></object>"


def split_file(root, name="train"):
    return root / "ImageSets" / "Segmentation" / f"{name}.txt"


def test_a_folder_gives_classes_splits_labels_images_and_masks(voc):
    folder = VOCFolder(voc)
    assert (folder.name, folder.classes, folder.n_classes) == ("voc", ("cat", "dog"), 2)
    assert folder.splits == ("train", "val")
    assert folder.split("train") == ("a", "b", "c")
    assert folder.split("train", limit=2) == ("a", "b")
    assert folder.labels(folder.split("train")).tolist() == [[1, 0], [1, 1], [0, 0]]
    assert folder.label("d").dtype == torch.float32
    assert folder.image("a").dtype == torch.uint8
    assert tuple(folder.image("a").shape) == (3, 16, 20)
    assert folder.size("a") == (16, 20)
    assert torch.equal(folder.mask("a"), torch.from_numpy(read_mask(folder.mask_path("a"))))
    assert folder.labels([]).shape == (0, 2)


@pytest.mark.parametrize("below", ["", "VOCdevkit/VOC2012", "VOC2012"])
def test_the_voc_folder_is_found_below_the_given_one(make_voc, tmp_path, below):
    make_voc(tmp_path / "data" / below)
    folder = VOCFolder(tmp_path / "data")
    assert folder.root == tmp_path / "data" / below
    assert folder.name == "data"
    assert VOCFolder(str(tmp_path / "data"), name="pets").name == "pets"


@pytest.mark.parametrize("file", ["labels.csv", "image_level_labels.csv"])
def test_small_files_may_lie_in_the_given_root(make_voc, tmp_path, file):
    inner = make_voc(tmp_path / "data" / "VOC2012")
    shutil.move(inner / "labels.csv", tmp_path / "data" / file)
    shutil.move(inner / "classes.txt", tmp_path / "data" / "classes.txt")
    folder = VOCFolder(tmp_path / "data")
    assert folder.classes == ("cat", "dog")
    assert folder.label("a").tolist() == [1, 0]


def test_without_a_file_of_classes_they_are_vocs(make_voc):
    folder = VOCFolder(make_voc(classes=None))
    assert folder.n_classes == 20
    assert folder.label("b").nonzero().flatten().tolist() == [7, 11]


def test_labels_come_from_annotations_and_difficult_objects_count(make_voc):
    root = make_voc(labels=None)
    (root / "Annotations").mkdir()
    part = "<object><name>dog</name><part><name>head</name></part></object>"
    for image_id, objects in {"a": part + OBJECT.format("dog", 0), "b": OBJECT.format("cat", 1)}.items():
        (root / "Annotations" / f"{image_id}.xml").write_text(XML.format(objects))
    folder = VOCFolder(root)
    assert folder.labels(["a", "b"]).tolist() == [[0, 1], [1, 0]]
    assert folder.context == {}
    with pytest.raises(DataError, match=r"c\.xml: no such annotation -> add it"):
        folder.label("c")


def test_labels_never_come_from_masks(make_voc):
    root = make_voc()
    labels = VOCFolder(root).labels("abcd")
    shutil.rmtree(root / "SegmentationClass")
    assert torch.equal(VOCFolder(root).labels("abcd"), labels)


def test_context_is_read_where_the_labels_have_it(make_voc):
    root = make_voc()
    assert VOCFolder(root).context == {}
    rows = "image_id,classes,context,agrees\na,cat,grass,1\nb,dog,road,0\n"
    (root / "labels.csv").write_text(rows)
    context = VOCFolder(root).context
    assert (context["a"].context, context["a"].agrees) == ("grass", True)
    assert (context["b"].context, context["b"].agrees) == ("road", False)


def test_windows_lines_blank_lines_and_further_columns_do_not_matter(voc):
    split_file(voc).write_bytes(b"\xef\xbb\xbfa  1\r\n\r\n b -1\r\nc\t0\r\n\r\n")
    (voc / "labels.csv").write_bytes(b"\xef\xbb\xbfimage_id, classes\r\na,cat\r\n\r\nb, dog  cat \r\n")
    (voc / "classes.txt").write_bytes(b"cat\r\ndog\r\n")
    folder = VOCFolder(voc)
    assert folder.split("train") == ("a", "b", "c")
    assert folder.labels("ab").tolist() == [[1, 0], [1, 1]]


def test_paths_may_have_spaces_and_any_letters(make_voc, tmp_path):
    labels = {"Kätzchen_猫": "Müll_犬"}
    root = make_voc(tmp_path / "meine Fotos ñ", {"train": tuple(labels)}, labels, classes=("Müll_犬",))
    folder = VOCFolder(root)
    (image_id,) = folder.split("train")
    assert folder.image(image_id).shape == (3, 16, 20)
    assert folder.mask(image_id).shape == (16, 20)
    assert folder.label(image_id).tolist() == [1]


def test_png_images_are_found(voc):
    Image.open(voc / "JPEGImages/a.jpg").save(voc / "JPEGImages/a.png")
    (voc / "JPEGImages/a.jpg").unlink()
    assert VOCFolder(voc).image_path("a").name == "a.png"


def test_masks_come_from_the_augmented_folder_only_where_there_is_no_other(voc):
    folder = VOCFolder(voc)
    assert folder.has_masks("abcd")
    (voc / "SegmentationClassAug").mkdir()
    for image_id in "ab":
        shutil.copy(folder.mask_path("d"), voc / "SegmentationClassAug" / f"{image_id}.png")
    (voc / "SegmentationClass" / "a.png").unlink()
    (voc / "SegmentationClass" / "c.png").unlink()
    assert folder.mask_path("a").parent.name == "SegmentationClassAug"
    assert folder.mask_path("b").parent.name == "SegmentationClass"
    assert folder.has_masks("abd")
    assert not folder.has_masks("c")
    folder.require_masks("abd", "this compares with them")
    with pytest.raises(DataError, match=r": no true masks in SegmentationClass/; this compares with them$"):
        folder.require_masks("abc", "this compares with them")
    with pytest.raises(DataError, match=r"c\.png: no such mask"):
        folder.mask("c")


def test_the_fingerprint_is_of_content_not_of_place(make_voc, tmp_path):
    here, there = (VOCFolder(make_voc(tmp_path / name)) for name in ("x", "y"))
    assert here.fingerprint("train", "val") == there.fingerprint("train", "val")
    assert here.fingerprint("train") != here.fingerprint("val")
    prints = {here.fingerprint("train")}
    for file, old, new in (
        (there.root / "classes.txt", "cat\ndog", "cat\ndog\ncow"),
        (there.root / "labels.csv", "a,cat", "a,dog"),
        (split_file(there.root), "a\nb\nc", "b\na\nc"),
    ):
        file.write_text(file.read_text().replace(old, new))
        prints.add(VOCFolder(there.root).fingerprint("train"))
    assert len(prints) == 4


def test_the_fingerprint_stays_the_same_over_the_years(make_voc):
    assert VOCFolder(make_voc()).fingerprint("train", "val") == "c58035a409ce"


TRAIN, LABELS, CLASSES = "ImageSets/Segmentation/train.txt", "labels.csv", "classes.txt"
FAULTS = [  # file or folder, what it is overwritten with (None: deleted), the message
    (
        "JPEGImages",
        None,
        r"voc: not in VOC layout: no JPEGImages .* -> give the folder that holds JPEGImages",
    ),
    ("ImageSets", None, r"voc: JPEGImages but no ImageSets/Segmentation -> add"),
    (TRAIN, "\n \n", r"train\.txt: empty split -> write one image id a line"),
    (TRAIN, "a\nb\na", r"train\.txt: id a twice -> list each image once"),
    (TRAIN, "/J/a.jpg /S/a.png", r"train\.txt: '/J/a\.jpg' is a path -> write the image id alone \(a\)"),
    (TRAIN, r"images\a.jpg", r"is a path -> write the image id alone \(a\)"),
    (TRAIN, "a\na\n/b", r"id a twice -> list each image once \(and 1 more\)"),
    (TRAIN, b"\xff\xfe\x80", r"train\.txt: not UTF-8 text -> save"),
    (LABELS, None, r"voc: no image-level labels \(neither labels\.csv nor .* nor Annotations\) -> write"),
    (LABELS, "image_id,classes\na,cta", r"labels\.csv: id a: unknown class cta -> did you mean cat\?"),
    (LABELS, "image_id,classes\na,Dog", r"id a: unknown class Dog -> did you mean dog\?"),
    (LABELS, "image_id,classes\na,zebra", r"unknown class zebra -> use one of: cat, dog"),
    (LABELS, "image_id,classes\na,cat\na,dog", r"labels\.csv: id a twice -> keep one row"),
    (LABELS, "image_id,classes\nb,cat", r"labels\.csv: no label for id a -> add a row a,<class names>"),
    (LABELS, "id;classes\na;cat", r"no column image_id and classes \(has: id;classes\) -> begin with"),
    (LABELS, "image_id,label\na,cat", r"no column classes \(has: image_id, label\)"),
    (LABELS, "", r"labels\.csv: no column image_id and classes \(has: nothing\)"),
    (LABELS, "image_id,classes\na,cat,dog", r"id a: more columns .* -> separate class names by spaces"),
    (LABELS, "image_id,classes,context,agrees\na,cat,grass,maybe", r"id a: agrees='maybe' -> write 1 or 0"),
    (CLASSES, "\n", r"classes\.txt: no class names -> write one name a line"),
    (CLASSES, "cat\ndog\ncat", r"classes\.txt: class cat twice"),
    (CLASSES, "cat\nhot dog", r"space in class name 'hot dog' -> write hot_dog"),
    (CLASSES, "background\ncat", r"names the background -> leave it out"),
    (CLASSES, "\n".join(map(str, range(255))), r"255 classes -> masks hold at most 254"),
    ("JPEGImages/a.jpg", None, r"a\.jpg: no such image -> add it"),
    ("SegmentationClass/a.png", None, r"a\.png: no such mask -> add it"),
]


@pytest.mark.parametrize(("file", "content", "message"), FAULTS)
def test_a_fault_is_one_line_with_its_remedy(voc, file, content, message):
    path = voc / file
    if content is None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        folder = VOCFolder(voc)
        for image_id in folder.split("train"):
            folder.label(image_id), folder.image(image_id), folder.mask(image_id)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("<annotation><object>", r"a\.xml: broken XML .* -> copy or download it again"),
        ("", r"a\.xml: broken XML"),
        (XML.format(OBJECT.format("dgo", 0)), r"a\.xml: id a: unknown class dgo -> did you mean dog\?"),
        (XML.format("<object></object>"), r"unknown class \(empty\)"),
    ],
)
def test_a_broken_annotation_is_one_line_with_its_remedy(make_voc, content, problem):
    root = make_voc(labels=None)
    (root / "Annotations").mkdir()
    (root / "Annotations" / "a.xml").write_text(content)
    with pytest.raises(DataError, match=problem):
        VOCFolder(root).label("a")


def test_an_unknown_split_is_answered_with_those_there_are(voc):
    with pytest.raises(DataError, match=r"test\.txt: no such split -> use one of: train, val"):
        VOCFolder(voc).split("test")
    for sneaky in ("../../labels", "", "*"):
        with pytest.raises(DataError, match="no such split"):
            VOCFolder(voc).split(sneaky)


def test_a_negative_limit_is_refused(voc):
    with pytest.raises(DataError, match="limit=-1: give 0"):
        VOCFolder(voc).split("train", limit=-1)


@pytest.mark.real
def test_the_photographs_are_read_as_they_are_documented(photos):
    folder = VOCFolder(photos)
    train, val = folder.split("train"), folder.split("val")
    assert (len(train), len(val)) == (437, 300)
    count = dict(zip(folder.classes, folder.labels(train).sum(0).int().tolist(), strict=True))
    told = {
        "cat": 131,
        "dog": 121,
        "horse": 68,
        "cow": 62,
        "sheep": 63,
        "person": 79,
        "sofa": 17,
        "chair": 19,
    }
    assert {name: count[name] for name in told} == told
    assert folder.has_masks(train + val)
    for image_id in train[:5]:
        assert folder.image(image_id).shape[1:] == folder.mask(image_id).shape == folder.size(image_id)
        values = set(np.unique(folder.mask(image_id))) - {0, 255}
        assert values == {folder.classes.index(name) + 1 for name in folder.class_names(image_id)}
    assert folder.root == Path(photos) / "VOCdevkit" / "VOC2012"
