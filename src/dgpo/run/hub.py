"""Upload of exported weights to the Hugging Face hub, for those who ask for it (`push_to_hub`)."""

from __future__ import annotations

from pathlib import Path

from dgpo.errors import UserError


def require_login(repo: str) -> None:
    """Before a run: a token must be there. Asks nobody on the network."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"push_to_hub={repo!r} is no repository name: {error}") from error
    if get_token() is None:
        raise UserError(
            f"push_to_hub={repo!r} needs a Hugging Face token: log in with `hf auth login`, or set HF_TOKEN; or leave "
            "push_to_hub out and upload the run's folder final/ later"
        )


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder as the model repository `repo`, made if it does not exist; returns its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Weights trained with dgpo")
    except Exception as error:  # whichever HTTP library this version of the hub's client is built on
        raise UserError(
            f"the upload to {repo} failed: {error}. Nothing is lost: the weights are in {folder}. Upload them with "
            f"`hf upload {repo} {folder}`"
        ) from error
    return f"{api.endpoint}/{repo}"
