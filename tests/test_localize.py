"""From a method to maps on disk: the rule of several scales, its symmetries, and what happens to files."""

import math
import os
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from wsss_lib import backbones, localize, methods
from wsss_lib.data import normalize, resize_image
from wsss_lib.errors import DataError, WsssError
from wsss_lib.methods.base import Method

SCALES = (1.0, 0.5, 1.5)
SIZES = {"a": (40, 33), "b": (48, 64), "c": (40, 33), "d": (33, 40), "e": (40, 33)}


class Folder:
    """Five images of three sizes in memory, with the methods of a VOCFolder that `localize` asks for."""

    n_classes = 4

    def __init__(self):
        draw = torch.Generator().manual_seed(3)
        self.images = {
            name: torch.randint(256, (3, *size), dtype=torch.uint8, generator=draw) for name, size in SIZES.items()
        }
        self.asked = []

    def size(self, image_id):
        return SIZES[image_id]

    def image(self, image_id):
        self.asked.append(image_id)
        return self.images[image_id]

    def labels(self, ids):
        one_hot = {"a": (0,), "b": (1, 3), "c": (2,), "d": (), "e": (0, 1, 2)}
        return torch.tensor([[float(k in one_hot[i]) for k in range(self.n_classes)] for i in ids])


@pytest.fixture
def folder():
    return Folder()


def trained(name="tiny", n_classes=4):
    torch.manual_seed(0)
    method = methods.build("cam", backbones.build(name), n_classes)
    with torch.no_grad():  # statistics and scales that are those of no identity
        for module in method.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
    return method.eval()


@pytest.fixture
def method():
    return trained()


def noise(n, height, width, seed=0):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def close(found, expected, share=1e-4):
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= share * float(expected.abs().max())


# several scales


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("size", [(40, 33), (32, 48)])
def test_it_is_the_sum_of_every_scale_and_flip_one_by_one(method, size, stride):
    image = noise(3, *size)
    out = [math.ceil(n / stride) for n in size]
    expected = torch.zeros(3, 4, *out)
    with torch.inference_mode():
        for one in range(3):
            for scale in SCALES:
                scaled = resize_image(image[one : one + 1], [round(n * scale) for n in size])
                for flips in ((), (-1,)):
                    cam = method.cam(scaled.flip(flips)).flip(flips)
                    expected[one] += interpolate(cam, size=out, mode="bilinear", align_corners=False)[0]
        close(localize.multi_scale_cam(method, image, SCALES, stride=stride), expected)


@pytest.mark.parametrize("size", [(40, 33), (32, 48)])
@pytest.mark.parametrize("name", ["tiny", "mobilenet_v1", "resnet50"])
def test_the_maps_of_the_mirror_are_the_mirrored_maps(name, size):
    method, image = trained(name), noise(1, *size)
    with torch.inference_mode():
        one, two = (localize.multi_scale_cam(method, x, SCALES) for x in (image, image.flip(-1)))
        alone, mirrored = (localize.multi_scale_cam(method, x, (1,), flip=False) for x in (image, image.flip(-1)))
    close(two.flip(-1), one)
    assert not torch.allclose(mirrored.flip(-1), alone, rtol=1e-3)  # the sum makes it so, not the network


def test_one_scale_without_flip_at_the_networks_stride_is_the_cam_itself(method):
    image = noise(2, 32, 48)
    with torch.inference_mode():
        found = localize.multi_scale_cam(method, image, scales=(1,), flip=False, stride=4)
        close(found, method.cam(image), 1e-6)


def test_large_batches_worked_on_in_parts_give_the_same_maps():
    calls = []

    def cam(image):
        calls.append(len(image))
        return image.mean(1, keepdim=True)

    image = noise(5, 300, 400)
    found = localize.multi_scale_cam(cam, image, scales=(1,), flip=False, stride=1)
    assert torch.equal(found, image.mean(1, keepdim=True))
    assert calls == [2, 2, 1]


@pytest.mark.parametrize("scales", [(), (1, 0), (1, -0.5)])
def test_scales_that_are_none_are_refused(method, scales):
    with pytest.raises(WsssError, match="scales="):
        localize.multi_scale_cam(method, noise(1, 8, 8), scales)


# normalisation and seeds


def test_absent_classes_are_zero_and_present_ones_reach_m_over_m_plus_eps():
    cam = torch.rand(2, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 7
    label = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]])
    found = localize.normalize_cam(cam, label)
    maximum = cam.amax((2, 3))
    torch.testing.assert_close(found.amax((2, 3)), label * maximum / (maximum + 1e-5))
    assert torch.equal(found[label == 0], torch.zeros(5, 5, 6))
    assert found.min() >= 0 and found.max() < 1


def test_a_map_of_zeros_stays_zero():
    assert torch.equal(localize.normalize_cam(torch.zeros(1, 2, 3, 3), torch.ones(1, 2)), torch.zeros(1, 2, 3, 3))


def test_a_label_of_other_classes_is_refused():
    with pytest.raises(WsssError, match=r"\(2, 3\): give \(2, 4\)"):
        localize.normalize_cam(torch.zeros(2, 4, 5, 5), torch.zeros(2, 3))


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 1.0])
def test_the_seed_is_the_argmax_over_threshold_and_maps(threshold):
    cam = torch.randint(5, (3, 20, 20), generator=torch.Generator().manual_seed(0)) / 4  # with ties
    stacked = np.concatenate([np.full((1, 20, 20), threshold), cam.numpy()])
    found = localize.seed(cam, threshold)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), stacked.argmax(0))


# files


def test_only_present_classes_are_stored_and_they_come_back_at_image_size(tmp_path):
    cam = torch.rand(4, 10, 9, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0.0, 1, 0, 1])
    localize.save_cam(tmp_path / "a.npz", cam, label, (40, 33))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert {key: (value.dtype.name, value.shape) for key, value in arrays.items()} == {
            "classes": ("int64", (2,)),
            "maps": ("float16", (2, 10, 9)),
            "size": ("int64", (2,)),
        }
    found = localize.load_cam(tmp_path / "a.npz", n_classes=4)
    expected = interpolate(cam[None], size=(40, 33), mode="bilinear", align_corners=False)[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected * label[:, None, None], rtol=0, atol=1e-3)
    assert localize.load_cam(tmp_path / "a.npz", n_classes=4, size=(10, 9)).shape == (4, 10, 9)


def test_an_image_without_any_class_has_maps_of_zeros(tmp_path):
    localize.save_cam(tmp_path / "a.npz", torch.rand(4, 3, 3), torch.zeros(4), (12, 10))
    assert torch.equal(localize.load_cam(tmp_path / "a.npz", n_classes=4), torch.zeros(4, 12, 10))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"text"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, damage):
    path = tmp_path / "a.npz"
    localize.save_cam(path, torch.rand(2, 3, 3), torch.ones(2), (12, 12))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"a\.npz: damaged.*run the CAM stage again"):
        localize.load_cam(path, n_classes=2)


def test_maps_of_another_data_set_are_refused(tmp_path):
    localize.save_cam(tmp_path / "a.npz", torch.rand(4, 3, 3), torch.tensor([0, 0, 0, 1]), (12, 12))
    with pytest.raises(DataError, match=r"a\.npz: has class 3, but n_classes=3"):
        localize.load_cam(tmp_path / "a.npz", n_classes=3)


# the whole step


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_every_image_gets_the_maps_that_it_gets_alone(method, folder, tmp_path, batch_size):
    written = localize.localize(method, folder, SIZES, tmp_path, scales=SCALES, batch_size=batch_size)
    assert written == 5
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.npz" for name in SIZES}
    for name, (height, width) in SIZES.items():
        label = folder.labels([name])
        with torch.inference_mode():
            maps = localize.multi_scale_cam(method, normalize(folder.image(name))[None], SCALES)
        expected = localize.normalize_cam(maps, label)[0][label[0] > 0]
        with np.load(tmp_path / f"{name}.npz") as arrays:
            assert arrays["classes"].tolist() == label[0].nonzero().flatten().tolist()
            assert arrays["size"].tolist() == [height, width]
            assert arrays["maps"].shape == (len(expected), math.ceil(height / 4), math.ceil(width / 4))
            assert np.allclose(arrays["maps"], expected.numpy(), atol=1e-3)


def test_it_changes_nothing_of_the_method_and_leaves_it_in_training(method, folder, tmp_path):
    method.train()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    localize.localize(method, folder, ["a"], tmp_path)
    assert method.training
    assert list(method.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


def test_files_that_are_there_are_skipped_and_damaged_ones_are_made_again(method, folder, tmp_path):
    localize.localize(method, folder, ["a", "b"], tmp_path, scales=(1,))
    times = {name: os.stat(tmp_path / f"{name}.npz").st_mtime_ns for name in "ab"}
    (tmp_path / "b.npz").write_bytes((tmp_path / "b.npz").read_bytes()[:100])
    folder.asked.clear()
    assert localize.localize(method, folder, ["a", "b", "c", "c"], tmp_path, scales=(1,)) == 2
    assert "c" in folder.asked and folder.asked.count("c") == 1
    assert os.stat(tmp_path / "a.npz").st_mtime_ns == times["a"]
    assert all(zipfile.is_zipfile(path) for path in tmp_path.iterdir())
    assert localize.localize(method, folder, SIZES.keys() & "abc", tmp_path) == 0


def test_an_interruption_leaves_whole_files_only(method, folder, tmp_path, monkeypatch):
    save, calls = np.savez, []

    def interrupted(file, **arrays):
        calls.append(file)
        if len(calls) == 3:
            file.write(b"PK half a file")
            raise KeyboardInterrupt
        save(file, **arrays)

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        localize.localize(method, folder, SIZES, tmp_path, scales=(1,))
    left = list(tmp_path.iterdir())
    assert len(left) == 2 and all(zipfile.is_zipfile(path) for path in left)
    monkeypatch.undo()
    assert localize.localize(method, folder, SIZES, tmp_path, scales=(1,)) == 3


def test_the_progress_bar_is_plain_text(method, folder, tmp_path, capsys):
    localize.localize(method, folder, ["a", "c"], tmp_path, scales=(1,))
    out, err = capsys.readouterr()
    assert out == "" and "CAMs: 100%" in err and "2/2" in err


def test_no_gradient_is_kept(method, folder, tmp_path, monkeypatch):
    seen = []
    plain = methods.cam.CAM.cam

    def cam(self, image):
        seen.append(torch.is_inference_mode_enabled())
        return plain(self, image)

    monkeypatch.setattr(methods.cam.CAM, "cam", cam)
    localize.localize(method, folder, ["a"], tmp_path, scales=(1,))
    assert seen and all(seen)


@pytest.mark.parametrize("name", ["tiny", "mobilenet_v1", "resnet50"])
def test_the_inference_copy_is_folded_and_gives_the_same_maps(name):
    method, image = trained(name), noise(2, 40, 33)
    network = localize.inference_copy(method)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with torch.inference_mode():
        image_last = image.contiguous(memory_format=torch.channels_last)
        close(network.cam(image_last), method.cam(image))
        close(network.logits(image_last), method.logits(image))


def test_a_network_that_folding_would_change_stays_as_it_is():
    class Backwards(Method):
        """Registers convolution before norm, but applies the norm first."""

        def __init__(self):
            super().__init__(n_classes=3)
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            nn.init.normal_(self.norm.running_mean)

        def logits(self, image):
            return self.conv(self.norm(image)).mean((2, 3))

        def cam(self, image):
            return self.conv(self.norm(image)).relu()

    torch.manual_seed(0)
    method = Backwards()
    network = localize.inference_copy(method)
    assert isinstance(network.norm, nn.BatchNorm2d) and network is not method and not network.training


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU at hand")
def test_a_gpu_writes_the_same_maps(method, folder, tmp_path):
    for device in ("cpu", "cuda"):
        localize.localize(method, folder, SIZES, tmp_path / device, scales=SCALES, device=device)
    for name in SIZES:
        one, two = (localize.load_cam(tmp_path / d / f"{name}.npz", n_classes=4) for d in ("cpu", "cuda"))
        torch.testing.assert_close(one, two, rtol=0, atol=5e-3)
