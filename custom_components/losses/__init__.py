"""Training losses; each is a function and a thin module."""

from .acquisition import AcquisitionLoss, acquisition_loss
from .charbonnier import CharbonnierLoss, charbonnier_loss
from .composite import CompositeLoss
from .gradient_difference import GradientDifferenceLoss, gradient_difference_loss
from .learnable_sharpness import LearnableSharpness, SharpnessFilterLoss
from .low_rank import LowRankLoss, low_rank_loss
from .p_norm import PNormLoss, generalised_gaussian_nll, p_norm_loss
from .parts import (
    DetailLoss,
    ErrorLikelihoodLoss,
    NoiseLoss,
    detail_loss,
    error_likelihood_loss,
    noise_loss,
)
from .perceptual import FeatureLoss, VGGPerceptualLoss
from .relativistic import DiscriminatorLoss, GeneratorLoss, discriminator_loss, generator_loss
from .sharpness import (
    SharpnessLoss,
    laplacian_filter,
    response_variance,
    sharpness_filter_term,
    sharpness_loss,
)
from .total_variation import TotalVariationLoss, total_variation_loss
from .triplet import TripletLoss, triplet_loss

__all__ = [
    "AcquisitionLoss",
    "CharbonnierLoss",
    "CompositeLoss",
    "DetailLoss",
    "DiscriminatorLoss",
    "ErrorLikelihoodLoss",
    "FeatureLoss",
    "GeneratorLoss",
    "GradientDifferenceLoss",
    "LearnableSharpness",
    "LowRankLoss",
    "NoiseLoss",
    "PNormLoss",
    "SharpnessFilterLoss",
    "SharpnessLoss",
    "TotalVariationLoss",
    "TripletLoss",
    "VGGPerceptualLoss",
    "acquisition_loss",
    "charbonnier_loss",
    "detail_loss",
    "discriminator_loss",
    "error_likelihood_loss",
    "generalised_gaussian_nll",
    "generator_loss",
    "gradient_difference_loss",
    "laplacian_filter",
    "low_rank_loss",
    "noise_loss",
    "p_norm_loss",
    "response_variance",
    "sharpness_filter_term",
    "sharpness_loss",
    "total_variation_loss",
    "triplet_loss",
]
