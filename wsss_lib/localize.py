"""(interim version of the lead; the owner replaces it) Localisation."""
from __future__ import annotations
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from wsss_lib.data.transforms import normalize, resize_image
from wsss_lib.runs import atomic_open


def multi_scale_cam(method, image, scales=(1.0, 0.5, 1.5, 2.0), flip=True, stride=4):
    H, W = image.shape[-2:]
    size = (-(-H // stride), -(-W // stride))
    total = 0
    for s in scales:
        x = image if s == 1 else resize_image(image, (round(H * s), round(W * s)))
        if flip:
            maps = method.cam(torch.cat([x, x.flip(-1)]))
            a, b = maps.chunk(2)
            maps = a + b.flip(-1)
        else:
            maps = method.cam(x)
        total = total + F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return total


def normalize_cam(cam, label):
    return cam / (cam.amax((2, 3), keepdim=True) + 1e-5) * label[:, :, None, None]


def seed(cam, threshold):
    cam = torch.as_tensor(cam)
    return torch.cat([torch.full_like(cam[:1], threshold), cam]).argmax(0).to(torch.uint8)


def save_cam(path, cam, label, size):
    k = np.flatnonzero(np.asarray(label))
    with atomic_open(path, "wb") as f:
        np.savez(f, classes=k.astype(np.int64), maps=np.asarray(cam)[k].astype(np.float16), size=np.array(size, np.int64))


def load_cam(path, n_classes, size=None):
    with np.load(path, allow_pickle=False) as d:
        size = tuple(size or d["size"].tolist())
        out = torch.zeros(n_classes, *size)
        if len(d["classes"]):
            m = torch.from_numpy(d["maps"].astype(np.float32))
            out[torch.from_numpy(d["classes"])] = F.interpolate(m[None], size=size, mode="bilinear", align_corners=False)[0]
    return out


@torch.inference_mode()
def localize(method, folder, ids, cam_dir, *, scales, flip, stride, batch_size, device):
    method = method.to(device).eval()
    groups = {}
    for i in ids:
        if not (Path(cam_dir) / f"{i}.npz").exists():
            groups.setdefault(folder.size(i), []).append(i)
    bar = tqdm(total=sum(map(len, groups.values())), desc="localize", mininterval=1)
    for size, members in groups.items():
        for b in range(0, len(members), batch_size):
            part = members[b : b + batch_size]
            image = torch.stack([normalize(folder.image(i)) for i in part]).to(device)
            label = folder.labels(part).to(device)
            cams = normalize_cam(multi_scale_cam(method, image, scales, flip, stride), label).cpu()
            for i, c in zip(part, cams):
                save_cam(Path(cam_dir) / f"{i}.npz", c, folder.label(i), size)
            bar.update(len(part))
    bar.close()
