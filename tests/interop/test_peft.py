"""What is written here, loaded by PEFT itself into tiny models; and what it gives."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import lowrank as lrk
from lowrank.interop import load_peft, parameter_name, save_peft
from tests.interop.trees import CONV1D, as_tree, flat

pytestmark = pytest.mark.slow
WEIGHTS = "adapter_model.safetensors"
MODELS = ("bert", "gpt2", "llama")


def build(name):
    """A tiny model of random weights, the same at every call."""
    import torch
    import transformers

    torch.manual_seed(0)
    tiny = {"vocab_size": 11, "num_hidden_layers": 2, "num_attention_heads": 2}
    tiny |= {"hidden_size": 8, "intermediate_size": 12, "max_position_embeddings": 6}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "bert":
            config = transformers.BertConfig(**tiny, num_labels=3)
            return transformers.BertForSequenceClassification(config).eval()
        if name == "llama":
            config = transformers.LlamaConfig(**tiny, pad_token_id=0)
            return transformers.LlamaForCausalLM(config).eval()
        config = transformers.GPT2Config(
            vocab_size=11,
            n_positions=6,
            n_embd=8,
            n_layer=2,
            n_head=2,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=1,
        )
        return transformers.GPT2LMHeadModel(config).eval()


def logits(model):
    import torch

    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    with torch.no_grad():
        return model(ids).logits.numpy()


def base_of(model):
    return as_tree({k: v.numpy().copy() for k, v in model.state_dict().items()})


def with_weights(model, tree):
    """The model with the dense weights of a tree in place of its own."""
    import torch

    own = {}
    for path, leaf in flat(tree).items():
        name, array = parameter_name(path), np.asarray(leaf)
        turn = path.endswith("kernel") and path.split("/")[-2] not in CONV1D
        own[name] = torch.tensor(array.T.copy() if turn else array)
    model.load_state_dict(own)
    return model


SELECT = {
    "bert": r"(query|word_embeddings)/(kernel|embedding)$",
    "gpt2": r"(c_attn|wte)/(kernel|embedding)$",
    "llama": r"([qv]_proj|embed_tokens)/(kernel|embedding)$",
}


def scattered(shape):
    """Numbers of no pattern in [-1, 1]."""
    return np.cos(np.arange(np.prod(shape), dtype=np.float32) ** 2).reshape(shape)


def trained(tx, params):
    """An adapted tree whose state holds other numbers than those of its init."""
    state = jax.eval_shape(tx.init, jax.random.key(0), params)
    filled = jax.tree.map(lambda x: jnp.asarray(0.3 * scattered(x.shape)), state)
    scales = jax.tree.map(lambda x: jnp.full(x.shape, 1.5), state.fixed)
    return tx.apply(params, filled._replace(fixed=scales))


def tree_of(name, params):
    """An adapter of many kinds, as an adapted tree."""
    low = lrk.matching(SELECT[name])
    first = lrk.both(low, lrk.matching("/0/|embed|wte"))
    last = lrk.both(low, lrk.neither(first))
    head = lrk.full(select=lrk.matching("^(classifier|lm_head)/"))
    if name == "llama":
        return trained(lrk.chain(lrk.dora(2, select=low), head), params)
    bias = lrk.full(select=lrk.matching("LayerNorm/bias|ln_1/bias"))
    ranks = [lrk.lora(2, select=first), lrk.lora(4, select=last)]
    tree = trained(lrk.chain(*ranks, head, bias), params)
    if name == "gpt2":
        return tree
    return lrk.merging.concat([tree, trained(lrk.lora(1, select=first), params)])


@pytest.mark.parametrize("name", MODELS)
def test_peft_gives_the_logits_of_the_tree_that_was_written(peft, name, tmp_path):
    params = base_of(build(name))
    tree = tree_of(name, params)
    conv1d = lrk.matching(f"({'|'.join(CONV1D)})/kernel$")
    config = {"fan_in_fan_out": name == "gpt2"}
    save_peft(tmp_path, tree, config=config, conv1d=conv1d)
    with warnings.catch_warnings():
        # Whatever else it warns of, such as keys it has no use for, is an error.
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = peft.PeftModel.from_pretrained(build(name), tmp_path).eval()
    want = logits(with_weights(build(name), jax.jit(lrk.materialize)(tree)))
    np.testing.assert_allclose(logits(wrapped), want, rtol=1e-4, atol=1e-5)
    assert np.abs(want - logits(build(name))).max() > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of embeddings that it saves too
        wrapped.save_pretrained(tmp_path / "back")
    back = load_file(tmp_path / "back" / WEIGHTS)
    for key, array in load_file(tmp_path / WEIGHTS).items():
        np.testing.assert_array_equal(back[key], array)
    found = load_peft(tmp_path / "back", params)
    again = load_peft(tmp_path, params)
    jax.tree.map(np.testing.assert_array_equal, found.state, again.state)
