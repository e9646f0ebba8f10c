"""`python -m custom_components.demo`: sharpen a sample head and show what came of it, without a download.

The sample is the MNI152 T1 template with the tissue maps that nilearn ships: an average of 152 heads is smooth, so the grey and
white matter maps, steepened, give it the edges that one head has. It is made low-resolution (x2, the protocol of the tables), then
sharpened through `python -m monai.bundle run` as any scan would be.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor

from .acquisition import interpolation_operator
from .batches.summary_file import NAME, read_rows
from .figures import three_planes
from .markdown import markdown_table
from .metrics import VolumeSSIM
from .transforms import Acquire, LoadScan, RobustScale, SaveScan

ROOT = Path(__file__).resolve().parent.parent


def steepen(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sharpen a tissue probability: `p^2 / (p^2 + (1 - p)^2)`."""
    result: npt.NDArray[np.float64] = p**2 / (p**2 + (1 - p) ** 2)
    return result


def sample_scan() -> MetaTensor:
    """The sample head, 1 mm, `(1, X, Y, Z)` in [0, 1], cut to the brain with a margin."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    template = load_mni152_template(resolution=1)
    t1, gm, wm = (i.get_fdata() for i in (template, load_mni152_gm_template(1), load_mni152_wm_template(1)))
    image = 0.4 * t1 + 0.6 * (0.95 * steepen(wm) + 0.6 * steepen(gm))
    inside = np.argwhere(t1 > 0.02)
    low = np.maximum(inside.min(0) - 4, 0)
    high = np.minimum(inside.max(0) + 5, t1.shape)
    high -= (high - low) % 2
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    affine = template.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    scan = MetaTensor(torch.from_numpy(image[box].astype(np.float32))[None], affine=torch.from_numpy(affine))
    return RobustScale(lower=None, clip=True)(scan)


def scores(image: torch.Tensor, hr: torch.Tensor) -> tuple[float, float]:
    """PSNR in dB and SSIM of `(1, *spatial)` against the truth, both in [0, 1]."""
    psnr = float(-10 * torch.log10(torch.mean((image - hr) ** 2)))
    return psnr, float(torch.as_tensor(VolumeSSIM()(image[None], hr[None])))


def main() -> None:
    """Make the sample, run the bundle, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="demo", help="folder of the results (default: demo)")
    parser.add_argument("--bundle", default="brain_mri_sr_any", help="bundle to run")
    args = parser.parse_args()
    out, bundle = Path(args.output_dir), ROOT / "bundles" / args.bundle

    hr = sample_scan()
    lr, hr = Acquire(scale_factor=2)(hr)
    for name, volume in (("hr", hr), ("lr", lr)):
        SaveScan(out, postfix="", dtype="float32")(volume, stem=name)

    started = time.perf_counter()
    spline = interpolation_operator(lr.shape[1:], hr.shape[1:])(lr.as_tensor()[None])[0].clamp_(min=0)
    spline_seconds = time.perf_counter() - started

    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(bundle / "configs" / "inference.json")]
    command += ["--bundle_root", str(bundle), "--dataset_dir", str(out / "lr.nii.gz"), "--output_dir", str(out)]
    subprocess.run(command, check=True)

    sr = LoadScan()(out / "lr_sr.nii.gz")
    seconds = float(read_rows(out / NAME)[0]["seconds"])
    rows = [["", "PSNR (dB)", "SSIM", "seconds"]]
    for name, image, took in (("spline", spline, spline_seconds), (args.bundle, sr.as_tensor(), seconds)):
        psnr, ssim = scores(image, hr.as_tensor())
        rows.append([name, f"{psnr:.2f}", f"{ssim:.4f}", f"{took:.1f}"])
    volumes = {"HR": hr, "LR": lr, "spline": MetaTensor(spline, affine=hr.affine), "SR": sr}
    three_planes(volumes, out / "demo.png", residual_to="HR", zoom=True, window=(0.0, 1.0))
    print(markdown_table(rows))
    print(f"SR scan: {out / 'lr_sr.nii.gz'}   picture: {out / 'demo.png'}")


if __name__ == "__main__":
    main()
