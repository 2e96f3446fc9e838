"""What each metric of the training rows means, in a line for someone who reads it for the first time."""

from __future__ import annotations

NO_HEALTH = {"forwards"}
"""What a run has cost."""
HEALTH = {
    "clip_fraction": "Share of images that the clip left without a gradient. Near 1 hardly anything is learned.",
    "kl": "Distance of the policy from the base model. It grows as the model learns; a sudden jump is a bad sign.",
    "grad_norm": "Length of the gradient before clipping. Single peaks are harmless, a steady rise is not.",
    "frac_reward_zero_std": "Share of the sampled groups whose images all earned the same. Such groups teach nothing.",
    "grad_noise_scale": "How many groups a step needs until noise stops dominating. Dashed: the groups in use.",
    "loss": "Its height means little. It should neither explode nor jump.",
    "reward_std": "Spread of the rewards in a rollout. At 0 there is nothing left to learn from.",
    "lr": "Learning rate of the last step.",
    "frac_trained": "Share of the sampled images that were trained on.",
    "grad_signal": "Estimate of the true gradient's squared length. Below 0, noise hides it.",
    "dsm": "Denoising loss of the policy on the images of the rollout.",
    "dsm_ref": "The same loss of the reference. The policy is measured against it.",
    "group_weight": "How much a group counts in the loss. It falls towards 0 once its images are in the right order.",
    "pair_weight": "How much a pair counts in the loss. It falls towards 0 once the pair is in the right order.",
    "ordered": "Share of pairs that the policy puts in the right order.",
    "ratio": "Probability under the policy over that under the rollout's weights. It should stay near 1.",
    "approx_kl": "How far the policy has moved from the weights that sampled the rollout. It should stay small.",
    "rho": "Mean weight of the images as good ones, from 0 to 1.",
    "implicit_reward": "Reward that the losses of the policy show, against `old`. Only differences in a group count.",
    "misfit": "How far the differences between these rewards in a group are from those given, squared. It should fall.",
    "moved": "Distance of the policy from `old`, the average that it is compared with.",
}
SHARES = {"clip_fraction", "frac_reward_zero_std", "frac_trained", "ordered"}
_PER_REWARD = {
    "reward_retries/": "Calls of this reward that failed and were repeated.",
    "reward_dropped/": "Images left out because this reward failed.",
}


def help_line(name: str) -> str:
    """The line of the metric train/`name`."""
    per_reward = next((line for start, line in _PER_REWARD.items() if name.startswith(start)), None)
    return per_reward or HEALTH.get(name, "A metric of the algorithm itself.")
