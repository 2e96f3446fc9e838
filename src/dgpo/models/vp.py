"""Variance-preserving networks as velocity fields: what Stable Diffusion 1.5, 2 and XL and PixArt share.

Such a network knows levels of `x_vp = alpha x0 + sigma noise`, alpha^2 + sigma^2 = 1, numbered by a training timestep,
and predicts the noise ("epsilon") or `alpha noise - sigma x0` ("v_prediction", Salimans and Ho 2022, arXiv
2202.00512). Divided by `alpha + sigma` the state lies on the line of flow matching at `t = sigma / (alpha + sigma)`
(`core/flow.py`), exactly; DDIM (arXiv 2010.02502) is Euler's method there, DPM-Solver++ the same solver in both.

- Between timesteps a level is found by interpolating log(sigma / alpha), half the negative log-SNR, and the network is
  asked at a fractional timestep. At the integer timesteps, which all grids here visit, that is exact.
- t above the schedule's largest level (.936 in Stable Diffusion) is clamped to it, and likewise below the smallest:
  the state is scaled to unit deviation by its own t, then read as if it were of the nearest level.
- The starting noise is the stock one, of unit deviation where alpha x0 is all but gone. In flow coordinates that is the
  deviation `noise_scale`, which depends on the level; so our own grid always starts at the last timestep.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dgpo.core.flow import expand, flow_to_vp, shift_t, velocity_from_eps
from dgpo.errors import UserError
from dgpo.models.pipeline import Family

_LOGIT_EPS = 2.0**-20  # alpha of a level that has none (zero terminal SNR), exact in fp32
_SNAP = 0.01  # t in fp32 tells timesteps apart to about a thousandth


class Level(NamedTuple):
    """Where a network is asked, one entry per image."""

    timestep: Tensor  # (n,) fp32 in [0, num_train_timesteps - 1], fractional between the trained ones
    alpha: Tensor  # (n,) fp32 > 0
    sigma: Tensor  # (n,) fp32 > 0


class VPSchedule:
    """The noise levels that a network was trained on and what it predicts, read from any scheduler that knows them."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.prediction: str = scheduler.config.get("prediction_type", "epsilon")
        cumprod = getattr(scheduler, "alphas_cumprod", None)
        if cumprod is None or self.prediction not in ("epsilon", "v_prediction"):
            raise UserError(
                f"a {type(scheduler).__name__} with prediction_type={self.prediction!r} describes no variance-"
                "preserving network that predicts epsilon or v_prediction. Save the pipeline with the scheduler that "
                "the network was trained for, such as DDIMScheduler."
            )
        if self.prediction == "epsilon" and scheduler.config.get("rescale_betas_zero_snr"):
            raise UserError(
                "rescale_betas_zero_snr=True with prediction_type='epsilon': at the last timestep nothing is left of "
                "the image, and it cannot be told from the noise. Such a network predicts v_prediction."
            )
        alpha_bar = torch.as_tensor(cumprod).cpu().double()
        self.levels = _flow_t(alpha_bar)  # (num_train_timesteps,) t, float64 ascending
        self._log_ratio = torch.logit(self.levels, _LOGIT_EPS).float()  # of sigma to alpha

    @property
    def noise_scale(self) -> float:
        """Deviation, in flow coordinates, of unit noise at the last timestep."""
        return 1 / float(vp_scale(self.levels[-1]))

    def at(self, t: Tensor) -> Level:
        """The level of t, the nearest where t is outside the schedule. t: (n,) fp32 in [0, 1]."""
        table = self._log_ratio = self._log_ratio.to(t.device)  # once: such a copy waits for the GPU
        wanted, last = torch.logit(t, _LOGIT_EPS), len(table) - 1
        high = torch.searchsorted(table, wanted).clamp(1, last)
        place = high - 1 + (wanted - table[high - 1]) / (table[high] - table[high - 1])
        place = torch.where((place - place.round()).abs() < _SNAP, place.round(), place).clamp(0, last)
        low = place.floor().long().clamp(max=last - 1)
        log_ratio = torch.lerp(table[low], table[low + 1], place - low)
        alpha, sigma = torch.sigmoid(-log_ratio), torch.sigmoid(log_ratio)
        norm = torch.hypot(alpha, sigma)
        return Level(place, alpha / norm, sigma / norm)

    def read(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Level]:
        """The state that the network reads (n, *latent) and its level. x_t: (n, *latent); t: (n,) fp32."""
        return flow_to_vp(x_t, (1 - t) * vp_scale(t), t * vp_scale(t)), self.at(t)

    def velocity(self, output: Tensor, x_vp: Tensor, level: Level) -> Tensor:
        """What the network said as `noise - x0`. output, x_vp, returned: (n, *latent), fp32 whatever output is."""
        from_output = velocity_from_eps if self.prediction == "epsilon" else velocity_from_v
        return from_output(x_vp, output.float(), level.alpha, level.sigma)

    def grid(self, num_steps: int, shift: float) -> Tensor:
        """The timesteps of the scheduler's configuration as t, trailing 0: for any solver, whatever the scheduler.

        They are evenly spaced from the last timestep down, to 0 with "linspace", to one step above it with "trailing".
        "leading" is read as "trailing": it would start below the last level, and the lower the fewer the steps.
        shift: as on a flow's grid, stretched so that both ends stay; 1 changes nothing. Returns (num_steps + 1,) fp32.
        """
        count = len(self.levels)
        if not 1 <= num_steps <= count:
            raise UserError(f"num_steps={num_steps}: this model has 1 to {count} noise levels to visit")
        if self.scheduler.config.get("timestep_spacing") == "linspace":
            timesteps = torch.linspace(count - 1, 0, num_steps, dtype=torch.float64).round()
        else:
            timesteps = (count - torch.arange(num_steps, dtype=torch.float64) * count / num_steps).round() - 1
        t, top = self.levels[timesteps.long()], self.levels[-1]
        return torch.cat([top * shift_t(t / top, shift), top.new_zeros(1)]).float()

    def scheduler_grid(self, num_steps: int) -> Tensor:
        """The levels that the scheduler itself visits, as t; the scheduler is left as it was. (num_steps + 1,) fp32.

        A scheduler that stops short of t = 0 (DDIM with set_alpha_to_one=False stops at timestep 0) has that as the
        last t; its latents, which a stock call decodes as they are, are then `vp_scale(t)` times those of the flow.
        Where DDIM's steps miss its next timestep (num_steps does not divide the timesteps; "linspace") it reads a
        state of one level as if of another, and only the levels that it reads are here.
        """
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(num_steps)
        if hasattr(scheduler, "sigmas"):  # sigma / alpha; the end is among them
            return torch.unique_consecutive(1 / (1 + 1 / scheduler.sigmas.cpu())).float()
        timesteps = torch.unique(scheduler.timesteps.cpu()).flip(0).long()  # PNDM visits some twice
        end = _flow_t(torch.as_tensor(getattr(scheduler, "final_alpha_cumprod", 1.0)).cpu().double())
        return torch.cat([self.levels[timesteps], end.reshape(1)]).float()


class VPFamily(Family, Protocol):
    """A family whose levels are those of a `VPSchedule`. The flow's shift is none, unless a user asks for one."""

    schedule: VPSchedule

    @property
    def shift(self) -> float:
        return 1.0

    @property
    def noise_scale(self) -> float:
        return self.schedule.noise_scale

    def sigmas(self, num_steps: int, shift: float) -> Tensor:
        return self.schedule.grid(num_steps, shift)

    def scheduler_sigmas(self, num_steps: int) -> Tensor:
        return self.schedule.scheduler_grid(num_steps)

    def to_vae(self, x0: Tensor) -> Tensor:
        """By the scale alone: these stock pipelines know no shift of latents."""
        return x0 / self.pipeline.vae.config.scaling_factor

    def from_vae(self, latents: Tensor) -> Tensor:
        return latents * self.pipeline.vae.config.scaling_factor


def vp_scale(t: Tensor) -> Tensor:
    """`alpha + sigma` at t: what the flow's state is multiplied by to preserve variance. Any shape, in [0, 1]."""
    return 1 / torch.hypot(1 - t, t)


def velocity_from_v(x_vp: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """`eps - x0` with `eps = alpha v + sigma x_vp` and `x0 = alpha x_vp - sigma v`: divides by nothing.

    x_vp, output: (B, *latent), output is v; alpha, sigma: (B,) >= 0; returns (B, *latent).
    """
    return expand(alpha + sigma, x_vp) * output + expand(sigma - alpha, x_vp) * x_vp


def _flow_t(alpha_bar: Tensor) -> Tensor:
    """`sigma / (alpha + sigma)` of alpha^2. Any shape, in [0, 1]."""
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return sigma / (alpha + sigma)
