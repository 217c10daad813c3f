import pytest
import torch

from model import choose, generate
from tests.programs.reference import lively_model, random_tokens


@pytest.fixture(scope="module")
def model():
    return lively_model(layers=2)


@pytest.fixture(scope="module")
def prompts(model):
    return [random_tokens(1, length, model.config, seed=length)[0].tolist() for length in (4, 37, 1, 12)]


def test_greedy_takes_the_best_token_of_the_full_forward(model, prompts):
    for prompt, new in zip(prompts, generate(model, prompts, 10, temperature=0.0, stop_ids=()), strict=True):
        assert len(new) == 10
        with torch.no_grad():
            logits = model(torch.tensor([prompt + new]))[0]
        assert logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist() == new


def test_the_seed_fixes_the_text_and_another_changes_it(model, prompts):
    first = generate(model, prompts, 12, seed=1)
    assert generate(model, prompts, 12, seed=1) == first
    assert generate(model, prompts, 12, seed=2) != first


def test_a_prompt_gets_the_same_text_in_any_company(model, prompts):
    together = generate(model, prompts, 12, seed=1, top_p=0.95)
    assert generate(model, prompts[::-1], 12, seed=1, top_p=0.95) == together[::-1]
    for prompt, new in zip(prompts, together, strict=True):
        assert generate(model, [prompt], 12, seed=1, top_p=0.95) == [new]


def test_the_same_prompt_twice_gets_two_texts(model, prompts):
    first, second = generate(model, [prompts[0]] * 2, 12, seed=1)
    assert first != second


def test_generation_ends_with_a_stop_id_and_only_in_its_row(model, prompts):
    free = generate(model, prompts, 10, temperature=0.0, stop_ids=())
    stop = free[1][3]
    stopped = generate(model, prompts, 10, temperature=0.0, stop_ids=(stop,))
    for unstopped, new in zip(free, stopped, strict=True):
        end = unstopped.index(stop) + 1 if stop in unstopped else 10
        assert new == unstopped[:end]
    assert len(stopped[1]) <= 4


def test_by_default_eos_and_end_of_turn_stop(model, monkeypatch):
    for stop in (1, 107):
        monkeypatch.setattr("model.sampling.choose", lambda *_, stop=stop, **__: stop)
        assert generate(model, [[2, 5]], 10) == [[stop]]


def test_the_step_boundary_is_called_after_every_forward(model):
    calls = []
    generate(model, [[2, 5]], 6, stop_ids=(), step_boundary=lambda: calls.append(1))
    assert len(calls) == 6


def test_padding_rows_of_the_embedding_are_never_chosen(model, prompts):
    free = generate(model, prompts, 6, seed=1, stop_ids=())
    assert max(max(new) for new in free) >= 100
    for temperature in (0.0, 1.0):
        kept = generate(model, prompts, 6, temperature=temperature, seed=1, stop_ids=(), vocab_size=100)
        assert max(max(new) for new in kept) < 100


def frequencies(logits, draws=4000, **options):
    generator = torch.Generator().manual_seed(0)
    chosen = [choose(logits, generator, **options) for _ in range(draws)]
    return torch.bincount(torch.tensor(chosen), minlength=len(logits)) / draws


LOGITS = torch.tensor([0.1, 2.0, -1.0, 1.0, 0.0])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_tempered_softmax_says(temperature):
    expected = torch.softmax(LOGITS / temperature, dim=0)
    torch.testing.assert_close(frequencies(LOGITS, temperature=temperature), expected, atol=0.03, rtol=0)


def test_top_k_leaves_the_k_best_in_their_proportions():
    expected = torch.softmax(torch.tensor([-torch.inf, 2.0, -torch.inf, 1.0, -torch.inf]), dim=0)
    torch.testing.assert_close(frequencies(LOGITS, temperature=1.0, top_k=2), expected, atol=0.03, rtol=0)


def test_top_p_leaves_the_smallest_set_that_reaches_p():
    # probabilities are 0.58, 0.21, 0.09, 0.08, 0.03: 0.6 needs two of them
    kept = frequencies(LOGITS, temperature=1.0, top_p=0.6) > 0
    assert kept.tolist() == [False, True, False, True, False]
    assert frequencies(LOGITS, draws=50, temperature=1.0, top_p=0.01)[1] == 1.0
    torch.testing.assert_close(
        frequencies(LOGITS, temperature=1.0, top_p=1.0), torch.softmax(LOGITS, dim=0), atol=0.03, rtol=0
    )


def test_top_k_of_one_is_greedy_and_ties_go_to_the_smaller_id():
    tied = torch.tensor([0.0, 3.0, 3.0, 1.0])
    generator = torch.Generator().manual_seed(0)
    assert choose(tied, generator, temperature=0.0) == 1
    assert {choose(tied, generator, temperature=1.0, top_k=1) for _ in range(20)} == {1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": [[2], []]}, "prompt 1 is empty"),
        ({"prompts": [[2, 99999]]}, "prompt 0 has ids from 2 to 99999"),
        ({"prompts": [[-1]]}, "prompt 0 has ids from -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"vocab_size": 1025}, "vocab_size is 1025, but the model has 1024 ids"),
    ],
)
def test_numbers_out_of_range_are_refused(model, change, message):
    with pytest.raises(ValueError, match=message):
        generate(model, **{"prompts": [[2]], "max_new_tokens": 3, **change})


def test_no_prompts_give_no_texts(model):
    assert generate(model, [], 3) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(temperature):
    model = lively_model(layers=1)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="logits are not finite after 0 tokens of prompt 0"):
        generate(model, [[2, 5, 9]], 3, temperature=temperature)
