"""A run in which a person is the reward: any recipe, with few and small groups, since answers are scarce."""

from __future__ import annotations

from dataclasses import replace

from dgpo.algorithms import DGPO
from dgpo.config import AUTOMATIC, Config
from dgpo.data.prompts import sources_of
from dgpo.utils.people import HUMAN


def for_teaching(config: Config) -> Config:
    """Keep the model, the algorithm and the sampler; let people judge, and let the run go on until they stop it.

    The rate does not fall, since nobody knows how many answers will come. It is a quarter of the recipe's, and DGPO's
    KL holds the model closer to its base, since each answer is learned from many times (benchmarks/README.md). Losses
    are not divided by their size, for that KL was measured without. The reference is not guided: what nobody judged
    stays as it is. Every update is evaluated, on a few pictures only, and saved. Prompts of the embedded world are
    those that leave something to a taste: colours, sizes, places. Its pictures are judged as they are evaluated.
    """
    if any(source.startswith("shapes:") for source in sources_of(config.prompts)):
        sampling = replace(config.sampling, num_inference_steps=10)
        config = replace(config, prompts="shapes:train:single_object,two_object", sampling=sampling)
    algorithm = config.algorithm
    if isinstance(algorithm, DGPO):
        if algorithm.self_normalized:  # its beta and KL belong to divided losses
            algorithm = replace(algorithm, self_normalized=False, beta=DGPO.beta, kl_coef=DGPO.kl_coef)
        algorithm = replace(algorithm, kl_coef=max(algorithm.kl_coef, 0.1), ref_guidance_scale=1.0)
    return replace(
        config,
        algorithm=algorithm,
        name=None,
        rewards={HUMAN: 1.0},
        reward_tags={},
        reward_failures={},
        eval_rewards=(),
        eval_prompts=AUTOMATIC.copy(),
        eval_images_per_prompt=1,
        eval_every=1,
        num_samples=8,
        stop_on_alarm=False,
        iterations=1000,
        max_minutes=None,
        num_groups=4,
        group_size=6,
        train_images=None,
        drop_equal_groups=False,
        redraw_groups=0,
        checkpoint_every=1,
        noise_scale_every=0,
        optimizer=replace(config.optimizer, lr=config.optimizer.lr / 4, warmup_steps=0, decay_steps=0),
    )
