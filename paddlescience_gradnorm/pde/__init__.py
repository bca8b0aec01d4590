"""Residuals of partial differential equations, and the points at which they are asked for."""

from paddlescience_gradnorm.pde._derivative_path import derivative_path
from paddlescience_gradnorm.pde.residual import Residual
from paddlescience_gradnorm.pde.sampling import sample_boundary, sample_face, sample_interior

__all__ = ["Residual", "derivative_path", "sample_boundary", "sample_face", "sample_interior"]
