"""A protocol of seconds, on checkpoints that tests make."""

from published_checkpoints import LETTERS, copy_checkpoint

PROMPTS = "\n".join(["the house of", "a people", "we must go", "so it is", "Hope", "on"])


def toml(targets, drafts) -> str:
    lines = [
        'name = "small"',
        'prompts = "prompts.txt"',
        "[measure]",
        "lookaheads = [1, 3]",
        "plane_lookahead = 3",
    ]
    lines += [
        "prompts = 6",
        "prompt_tokens = 8",
        "new_tokens = 8",
        "timed = 0",
        'dtype = "float32"',
    ]
    for role, names in (("targets", targets), ("drafts", drafts)):
        for name in names:
            lines += [f"[[{role}]]", f'folder = "{name}"', "params = 30e9", "train_tokens = 180e9"]
    return "\n".join(lines)


def write_protocol(folder, targets=("llama-2", "smollm2"), drafts=("smollm2", "gpt2", "pythia")):
    """Writes a protocol with its checkpoints, one of them with a tokenizer of its own, and returns the
    arguments of `sdsl protocol`."""
    (folder / "prompts.txt").write_text(PROMPTS)
    (folder / "small.toml").write_text(toml(targets, drafts))
    for name in {*targets, *drafts}:
        other = [LETTERS[::-1]] if name == "gpt2" else []
        copy_checkpoint(name, folder / "checkpoints" / name, *other)
    return [folder / "small.toml", "--checkpoints", folder / "checkpoints"]
