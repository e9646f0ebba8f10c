"""A scan as a scanner of lower field strength would have given it: less signal, hence more noise, on the same grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .noise import add_rician_noise

GYROMAGNETIC_RATIO = 42.577e6  # of the proton, Hz/T
T1_POWER_LAW = {
    "white_matter": (0.00071, 0.382),
    "grey_matter": (0.00116, 0.376),
}  # s; Rooney 2007, in this form Marques 2019
SEQUENCES = ("gradient_echo", "spin_echo")
AIR_LIMIT = 2.5  # standard deviations up to which voxels count as air; 4 % of the noise lies above
LOUDEST_NOISE = 0.2  # of the 98th percentile; what is louder is tissue: a scan without air


def tissue_t1(field: float, tissue: str = "white_matter") -> float:
    r"""Longitudinal relaxation time of brain tissue in s at a field in T: :math:`T_1 = c\,(\gamma B_0)^k`.

    Fitted to 0.2 to 7 T; 0.68 s (1.5 T) and 0.89 s (3 T) for white matter, 1.00 s and 1.29 s for `grey_matter`.

    Reference:
        W. D. Rooney et al., Magnetic field and tissue dependencies of human brain longitudinal 1H2O relaxation in vivo, 2007,
        doi:10.1002/mrm.21122; in Hz: J. P. Marques et al., Low-field MRI: an MR physics perspective, 2019,
        doi:10.1002/jmri.26637.
    """
    if tissue not in T1_POWER_LAW:
        raise ValueError(f"tissue must be one of {tuple(T1_POWER_LAW)}, got {tissue!r}")
    if not 0 < field < math.inf:
        raise ValueError(f"a field must be > 0 T, got {field}")
    scale, power = T1_POWER_LAW[tissue]
    return float(scale * (GYROMAGNETIC_RATIO * field) ** power)


def steady_state(sequence: str, tr: float, te: float, flip_angle: float, t1: float, t2: float) -> float:
    r"""Signal of a tissue in the steady state of a sequence, per magnetisation in equilibrium; times in s, the angle in degrees.

    Transverse magnetisation is spoiled in each TR. With :math:`E_1 = e^{-TR/T_1}` and the angle :math:`\theta`

    .. math:: s = \sin\theta\,\frac{1 - E_1}{1 \mp E_1 \cos\theta}\,e^{-TE/T_2},

    minus for a gradient echo; plus for a spin echo with TE much below TR, whose 180 degree pulse turns what is left along
    the field. At 90 degrees both are :math:`1 - E_1`.
    """
    e1, angle = math.exp(-tr / t1), math.radians(flip_angle)
    left = e1 * math.cos(angle) * (1 if sequence == "gradient_echo" else -1)
    return math.sin(angle) * (1 - e1) / (1 - left) * math.exp(-te / t2)


@dataclass(frozen=True)
class FieldChange:
    r"""What happens to signal and noise when a scan is taken at `b_low` in place of `b_high`.

    The signal of equal nuclei grows with :math:`B_0^2`: one power is their polarisation, one the frequency at which the coil
    sees them. Thermal noise of the body grows with the frequency and the root of the bandwidth, :math:`B_0 \sqrt{BW}`. With
    :math:`a = B_l / B_h`, :math:`b = BW_l / BW_h` and one relaxation correction f for the whole image

    .. math:: S_l = a^2 f\,S_h, \qquad \sigma_l = a \sqrt{b}\,\sigma_h, \qquad
        f = s(T_{1,l}, TR_l, TE_l) / s(T_{1,h}, TR_h, TE_h),

    so that the ratio of the SNRs is :math:`a f / \sqrt{b}`. The scan brings :math:`a^2 f \sigma_h` of noise with it; what lacks
    has the standard deviation :math:`\sigma_h \sqrt{a^2 b - a^4 f^2}` in each of the two channels.

    As in the paper: noise of the body alone, coils and flip angles that are the same at both fields, one tissue for f, T2
    the same at both, the steady state. It was made for proton density weighting: with T1 weighting the contrast between
    tissues would change too, which one f cannot show; an inversion pulse (MPRAGE) is not modelled.

    Args:
        b_high, b_low: fields in T; the paper's application to ADNI goes from 3 to 1.5.
        sequence: `gradient_echo` (spoiled) or `spin_echo`; for spin echo give its own times.
        tr, te: times in s at the high field; by default those of the gradient echo in the authors' example.
        flip_angle: in degrees, at both fields.
        tr_low, te_low: times at the low field; None: the same.
        t1_high, t1_low: of the tissue in s; None: `tissue_t1`.
        t2: of the tissue in s; 92 ms is the authors' for white matter. It cancels where both TE are the same.
        tissue: which tissue `tissue_t1` takes.
        bandwidth_ratio: b, readout bandwidth at the low field over that at the high one.

    Raises:
        ValueError: on what is out of range, and where the low field would have the better SNR.

    Reference:
        Z. Wu, W. Chen, K. S. Nayak, Minimum field strength simulator for proton density weighted MRI, PLoS ONE 11(5), 2016,
        doi:10.1371/journal.pone.0154711.
    """

    b_high: float = 3.0
    b_low: float = 1.5
    sequence: str = "gradient_echo"
    tr: float = 0.0046
    te: float = 0.0026
    flip_angle: float = 5.0
    tr_low: float | None = None
    te_low: float | None = None
    t1_high: float | None = None
    t1_low: float | None = None
    t2: float = 0.092
    tissue: str = "white_matter"
    bandwidth_ratio: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.b_low <= self.b_high < math.inf:
            raise ValueError(f"expected fields 0 < b_low <= b_high in T, got {self.b_low} and {self.b_high}")
        if self.sequence not in SEQUENCES:
            raise ValueError(f"sequence must be one of {SEQUENCES}, got {self.sequence!r}")
        if not 0 < self.flip_angle < 180:
            raise ValueError(f"flip_angle must be between 0 and 180 degrees, got {self.flip_angle}")
        for name in ("tr", "t2", "bandwidth_ratio", "tr_low", "t1_high", "t1_low"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be > 0, got {value}")
        for name in ("te", "te_low"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be >= 0, got {value}")
        if self.snr_ratio > 1 + 1e-9:
            raise ValueError(
                f"expected no more SNR at the low field than at the high one, got {self.snr_ratio:.3g} times it"
            )

    @property
    def relaxation(self) -> float:
        """The relaxation correction f."""
        t1_high = tissue_t1(self.b_high, self.tissue) if self.t1_high is None else self.t1_high
        t1_low = tissue_t1(self.b_low, self.tissue) if self.t1_low is None else self.t1_low
        tr_low = self.tr if self.tr_low is None else self.tr_low
        te_low = self.te if self.te_low is None else self.te_low
        low = steady_state(self.sequence, tr_low, te_low, self.flip_angle, t1_low, self.t2)
        return low / steady_state(self.sequence, self.tr, self.te, self.flip_angle, t1_high, self.t2)

    @property
    def signal_scale(self) -> float:
        """Signal at the low field over that at the high one, `a^2 f`."""
        return (self.b_low / self.b_high) ** 2 * self.relaxation

    @property
    def snr_ratio(self) -> float:
        """SNR at the low field over that at the high one, `a f / sqrt(b)`."""
        return self.b_low / self.b_high * self.relaxation / math.sqrt(self.bandwidth_ratio)

    @property
    def added_noise(self) -> float:
        """Noise to add over that of the high field, in the unit of the low field's signal: `sqrt(a^2 b - a^4 f^2)`."""
        return self.signal_scale * math.sqrt(max(1 / self.snr_ratio**2 - 1, 0.0))


def background_noise(x: torch.Tensor) -> float:
    r"""Standard deviation of a channel's noise from the air around the head, where a magnitude is Rayleigh distributed.

    The mean square of air is :math:`2\sigma^2`. What lies beyond :math:`c\,\sigma`, c = 2.5, may be head and is left out, with the
    mean square corrected for it: a fixed point, looked for from the 5th percentile upwards, which is below :math:`\sigma`
    where an eighth of the voxels or more is air. Voxels of exactly 0 are a mask and do not count. It holds for one
    receive coil (or an adaptive combination of several), and not where the scanner has set part of the air to 0 or
    the darkest tissue is less than about 5 :math:`\sigma`; then measure the noise elsewhere and give it.

    Args:
        x: magnitudes, any shape; read with a stride beyond 2^22 voxels.

    Raises:
        ValueError: when there is no noisy air, as in a skull-stripped scan.

    Reference:
        H. Gudbjartsson, S. Patz, The Rician distribution of noisy MRI data, 1995, doi:10.1002/mrm.1910340618.
    """
    flat = x.reshape(-1)[:: max(x.numel() // 2**22, 1)].double()
    flat = flat[flat > 0]
    if not flat.numel():
        raise ValueError("expected noisy air around the head, got an image without a value above 0")
    low, high = (float(v) for v in torch.quantile(flat, torch.tensor([0.05, 0.98], dtype=flat.dtype)))
    tail = math.exp(-(AIR_LIMIT**2) / 2)
    share = (1 - (1 + AIR_LIMIT**2 / 2) * tail) / (1 - tail)  # of the mean square that the voxels below the limit have
    std = low
    for _ in range(100):
        last, air = std, flat[flat <= AIR_LIMIT * std]
        std = math.sqrt(float(air.square().mean()) / (2 * share))
        if abs(std - last) < 1e-4 * std:
            break
    if not std < LOUDEST_NOISE * high:
        raise ValueError(
            f"expected noisy air around the head, got none below {LOUDEST_NOISE:.0%} of the head's intensity"
        )
    return std


def simulate_low_field(
    x: torch.Tensor,
    noise_std: float,
    change: FieldChange | None = None,
    keep_scale: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    r"""The magnitude image that a scanner of `change.b_low` would have given of what `x` shows at `change.b_high`.

    .. math:: y = \left|a^2 f\,x + n\right| / g, \qquad n \text{ complex, of } \sigma_h \sqrt{a^2 b - a^4 f^2} \text{ per channel},

    with g = :math:`a^2 f` where the scale is kept, else 1; see `FieldChange`. Nothing is lost by having only the magnitude: n is
    alike in all directions of the complex plane, so :math:`|z + n|` is distributed as :math:`||z| + n|`, and a Rician scan gives a
    Rician one of the low field's noise. Equal fields and bandwidths give `x` itself.

    Args:
        x: magnitude image at the high field, any shape.
        noise_std: its noise per channel in the unit of `x`, as known or from `background_noise`.
        change: of field; None: from 3 to 1.5 T.
        keep_scale: scale the result so that tissue keeps its intensity (the noise is then :math:`\sigma_h` times the
            inverse of `change.snr_ratio`); False leaves it as faint as it is. Nothing is clipped.
        generator: of the noise.

    Raises:
        ValueError: when `noise_std` is negative.
    """
    change = FieldChange() if change is None else change
    if not noise_std >= 0:
        raise ValueError(f"noise_std must be >= 0, got {noise_std}")
    gain = 1 / change.signal_scale if keep_scale else 1.0
    scaled = x if keep_scale else x * change.signal_scale
    return add_rician_noise(scaled, noise_std * change.added_noise * gain, generator)
