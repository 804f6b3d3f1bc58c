"""The learned policies: what they choose, what they are trained in, and whether training finds a best action that is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from export.tuning.environment import LtdDepth, LtdSize, RespsWindow
from export.tuning.nets import Mlp, graph
from export.tuning.replay import Replay, candidates, replay
from export.tuning.traces import Trace
from policy import PLAIN, FixedPolicy, Growing, GrowthPolicy, Held, Observation, Outcome, Surface, TreeSpec
from policy.ltd import PAD, Ltd, bounded, depth_state, size_state
from policy.resps import Action, Resps, small_actions

# A row costs 1, a level 1, plain decoding 11: a token is worth about 10.
SURFACE = Surface((1, 16), (128, 4096), ((10.0, 25.0), (10.0, 25.0)), (1, 4), (1, 6), ((1.0, 6.0), (1.0, 6.0)), 1.0)
TREE: Action = (7, 6, 1)
ACTIONS: tuple[Action, ...] = ((1, 0, 0), (3, 2, 1), TREE)


def random_trace(width: int, depth: int, length: int, seed: int, features: int = 8) -> Trace:
    """A pool as `expand` leaves it: levels of the ``width`` best candidates' ``width`` children, scores falling from level to level, and a
    path that is one of the pool's. A seed's paths and features are the same at every width."""
    shared, random = np.random.default_rng(seed), np.random.default_rng((seed, width))
    lengths, looks = shared.integers(0, depth + 1, length), shared.standard_normal((length, features)).astype(np.float16)
    pool = candidates(width, depth)
    scores, right = np.zeros((length, pool), np.float32), np.full((length, depth), -1, np.int16)
    for place in range(length):
        beam, above = np.zeros(1, np.float32), 0
        for level in range(depth):
            start = candidates(width, level) if level else 0
            children = (beam[:, None] - random.exponential(1, (len(beam), width))).astype(np.float32)
            scores[place, start : start + children.size] = children.ravel()
            best = np.argsort(-children.ravel(), kind="stable")[:width]
            if level < lengths[place] and above is not None:
                slot = next((int(each) for each in best if each // width == above), None)
                right[place, level] = -1 if slot is None else start + slot
                above = None if slot is None else int(np.flatnonzero(best == slot)[0])  # type: ignore[assignment]
            beam = children.ravel()[best]
    levels = np.concatenate([np.full(width if not level else width**2, level + 1, np.int8) for level in range(depth)])
    return Trace("random", 20, width, scores, levels, right, looks)


def toy_answers(count: int = 4, length: int = 60) -> list[Mapping[int, Trace]]:
    """Chains: in every second answer all of the draft is right, in the others nothing. Both the features and the scores say so."""
    answers: list[Mapping[int, Trace]] = []
    for index in range(count):
        easy = index % 2 == 0
        scores = np.tile(np.arange(1, 7, dtype=np.float32) * (-0.1 if easy else -3.0), (length, 1))
        right = np.tile(np.arange(6, dtype=np.int16) if easy else np.full(6, -1, np.int16), (length, 1))
        features = np.tile(np.array([1, -1, 1, -1] if easy else [-1, 1, 1, -1], np.float16), (length, 1))
        trace = Trace(str(index), 20, 1, scores, np.arange(1, 7, dtype=np.int8), right, features)
        answers.append({1: trace})
    return answers


def seen(features: object = (1.0, -1.0, 1.0, -1.0)) -> Observation:
    return Observation(100, 50, lambda: np.asarray(features, np.float16))


def grown(spec: TreeSpec, level: int, seed: int = 0, length: int = 256) -> Growing:
    scores = -np.random.default_rng(seed).exponential(2, candidates(spec.width, level)).astype(np.float32)
    return Growing(spec, level, scores, length)


def constant(*logits: float) -> object:
    return lambda x: np.array([logits], np.float32)


def likely_enough(x: np.ndarray) -> np.ndarray:
    """A depth network: go on while the best score of the level is above -1.5."""
    return np.array([[0.0, x[0, 0] + 1.5]], np.float32)


def by_places(x: np.ndarray) -> np.ndarray:
    """A size network: as many logits as scores of the first level and one of the second."""
    return x[:, :4]


# Re-SpS


def test_action_table() -> None:
    small = small_actions(16)
    assert small[0] == (1, 0, 0)
    assert 14 <= len(small) == len(set(small)) <= 18
    assert all(TreeSpec(*action) for action in small)
    assert {width for _, _, width in small[1:]} == {2, 3}
    assert {depth for _, depth, _ in small[1:]} == {1, 2, 3, 4, 5, 6}
    assert max(nodes for nodes, _, _ in small_actions(8)) == 8


def test_resps_asks_its_net_for_one_row_of_features() -> None:
    rows: list[np.ndarray] = []

    def net(x: np.ndarray) -> np.ndarray:
        rows.append(x)
        return np.array([[0.0, 2.0, 1.0]])

    assert Resps(net, ACTIONS).choose(seen()) == TreeSpec(3, 2, 1)
    assert rows[0].dtype == np.float32
    assert rows[0].tolist() == [[1, -1, 1, -1]]
    assert Resps(constant(1.0, 0.0, 0.0), ACTIONS).choose(seen()) == PLAIN


def test_resps_stays_with_an_action_that_is_nearly_the_best() -> None:
    policy = Resps(lambda x: x, ((1, 0, 0), (3, 2, 1), TREE), margin=0.5)
    policy.begin()
    assert policy.choose(seen((0, 1, 0))) == TreeSpec(3, 2, 1)
    assert policy.choose(seen((0, 1, 1.4))) == TreeSpec(3, 2, 1)
    assert policy.choose(seen((0, 1, 1.6))) == TreeSpec(*TREE)
    policy.begin()
    assert policy.choose(seen((0, 1, 1.1))) == TreeSpec(*TREE)


def test_resps_samples_when_asked_to() -> None:
    def draws(seed: int) -> list[TreeSpec]:
        policy = Resps(constant(0.0, 0.5, 0.0), ACTIONS, temperature=1.5, seed=seed)
        return [policy.choose(seen()) for _ in range(50)]

    assert len(set(draws(0))) == 3
    assert draws(0) == draws(0) != draws(1)


@pytest.mark.parametrize("bad", [(np.nan, 0.0, 0.0), (np.inf, 0.0, 0.0), (0.0, 0.0)])
def test_useless_logits_name_the_policy(bad: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="resps"):
        Resps(constant(*bad), ACTIONS).choose(seen())
    with pytest.raises(ValueError, match="ltd depth"):
        Ltd(constant(np.nan, 0.0), None, TREE).deepen(grown(TreeSpec(*TREE), 1))
    with pytest.raises(ValueError, match="ltd size"):
        Ltd(None, constant(*bad), TREE, sizes=(1, 4, 7)).budget(grown(TreeSpec(*TREE), 6))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one action"):
        Resps(constant(), ())
    with pytest.raises(ValueError, match="at most"):
        Resps(constant(1.0), ((99, 1, 2),))
    with pytest.raises(ValueError, match="every 1 level"):
        Ltd(None, None, TREE, every=0)
    with pytest.raises(ValueError, match="sizes"):
        Ltd(None, constant(1.0), TREE)


# LTD


def test_ltd_without_networks_is_the_largest_tree() -> None:
    policy = Ltd(None, None, (6, 3, 2))
    assert isinstance(policy, GrowthPolicy)
    spec = policy.choose(seen())
    assert spec == TreeSpec(6, 3, 2)
    assert all(policy.deepen(grown(spec, level)) for level in (1, 2))
    assert policy.budget(grown(spec, 3)) == 6
    assert policy.budget(grown(spec, 1)) == 3


def test_ltd_asks_every_few_levels() -> None:
    spec, stop = TreeSpec(16, 6, 3), constant(1.0, 0.0)
    assert [Ltd(stop, None, (16, 6, 3), every=3).deepen(grown(spec, level)) for level in range(1, 6)] == [True, True, False, True, True]
    assert not Ltd(constant(0.0, 0.0), None, (16, 6, 3)).deepen(grown(spec, 1))  # a tie stops


def test_sizes_are_those_of_the_table() -> None:
    spec = TreeSpec(16, 6, 3)
    policy = Ltd(None, constant(0.0, 0.0, 1.0), (16, 6, 3), sizes=(2, 8, 16))
    assert policy.budget(grown(spec, 6)) == 16
    assert policy.budget(grown(spec, 2)) == 8  # 13 candidates
    assert policy.budget(grown(spec, 1)) == 2
    assert bounded(grown(spec, 1), 8, (8, 16)) == 1
    assert bounded(grown(spec, 1), 8, ()) == 4


def test_states_are_padded() -> None:
    tree = TreeSpec(16, 6, 3)
    growing = grown(TreeSpec(4, 2, 2), 1)
    state = depth_state(growing, tree)
    assert state.dtype == np.float32
    assert state[:2].tolist() == sorted(growing.last.tolist(), reverse=True)
    np.testing.assert_allclose(state[2:], [PAD, 8 / 16, 1 / 6], rtol=1e-6)
    growing = grown(tree, 3)
    assert depth_state(growing, tree)[:3].tolist() == sorted(growing.last.tolist(), reverse=True)[:3]
    full = size_state(growing, tree)
    assert full.shape == (candidates(3, 6) + 2,)
    assert full[: candidates(3, 3)].tolist() == growing.scores.tolist()
    assert set(full[candidates(3, 3) : -2].tolist()) == {PAD}
    low = Growing(tree, 1, np.array([-1, -np.inf, -30], np.float32), 1)
    assert depth_state(low, tree)[:3].tolist() == size_state(low, tree)[:3].tolist() == [-1, PAD, PAD]


def test_levels_of_another_width_stay_in_their_places() -> None:
    tree = TreeSpec(16, 3, 3)
    narrow, wide = grown(TreeSpec(4, 3, 2), 3), grown(TreeSpec(16, 4, 4), 4)
    state = size_state(narrow, tree)
    assert state[:3].tolist() == [*narrow.scores[:2].tolist(), PAD]
    assert state[3:12].tolist() == [*narrow.scores[2:6].tolist(), *[PAD] * 5]
    assert state[12:21].tolist() == [*narrow.scores[6:10].tolist(), *[PAD] * 5]
    state = size_state(wide, tree)
    assert state[:3].tolist() == wide.scores[:3].tolist()
    assert state[12:21].tolist() == wide.scores[20:29].tolist()


def test_ltd_forwards_to_its_slow_policy() -> None:
    told: list[object] = []

    class Slow(FixedPolicy):
        def begin(self) -> None:
            told.append("begin")

        def observe(self, outcome: Outcome) -> None:
            told.append(outcome)

    policy = Ltd(None, None, (16, 6, 3), slow=Slow(TreeSpec(4, 2, 2)))
    policy.begin()
    assert policy.choose(seen()) == TreeSpec(4, 2, 2)
    outcome = Outcome(PLAIN, 1, 1, 0.1)
    policy.observe(outcome)
    assert told == ["begin", outcome]
    assert policy.budget(grown(TreeSpec(4, 2, 2), 2)) == 4


# Networks


def random_net(sizes: tuple[int, ...], activation: str, normalise: bool = False, seed: int = 0) -> Mlp:
    random = np.random.default_rng(seed)
    pairs = pairwise(sizes)
    layers = tuple(
        (random.standard_normal((b, a)).astype(np.float32) / a**0.5, random.standard_normal(b).astype(np.float32)) for a, b in pairs
    )
    return Mlp(layers, activation, normalise)  # type: ignore[arg-type]


@pytest.mark.parametrize(("activation", "normalise"), [("tanh", True), ("tanh", False), ("relu", True), ("relu", False)])
def test_the_graph_computes_what_numpy_does(activation: str, normalise: bool) -> None:
    import onnx
    import onnxruntime

    net = random_net((24, 32, 16, 5), activation, normalise)
    model = graph(net)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [(each.name, each.shape, each.type) for each in session.get_inputs()] == [("x", [1, 24], "tensor(float)")]
    for seed in range(3):
        x = 3 * np.random.default_rng(seed).standard_normal((1, 24)).astype(np.float32)
        (logits,) = session.run(["logits"], {"x": x})
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, net(x), atol=1e-5)


def test_a_single_layer_has_a_graph() -> None:
    model = graph(random_net((4, 3), "tanh"))
    assert [node.op_type for node in model.graph.node] == ["Gemm"]


def test_scaling_takes_the_size_out() -> None:
    net = random_net((8, 4, 3), "tanh", normalise=True)
    x = np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32)
    np.testing.assert_allclose(net(x), net(1000 * x), atol=1e-5)
    assert np.isfinite(net(np.zeros((1, 8), np.float32))).all()


def test_layers_must_fit() -> None:
    a, b = random_net((4, 3), "tanh").layers[0], random_net((4, 2), "tanh").layers[0]
    for layers, activation, words in [((a, b), "tanh", "does not fit"), ((), "tanh", "needs a layer"), ((a,), "gelu", "tanh or relu")]:
        with pytest.raises(ValueError, match=words):
            Mlp(layers, activation)  # type: ignore[arg-type]


# Environments


def some_answers(seeds: range = range(3)) -> list[Mapping[int, Trace]]:
    return [{width: random_trace(width, 6, 50, seed) for width in (2, 3)} for seed in seeds]


def test_random_traces_are_consistent() -> None:
    for width in (1, 2, 3):
        trace = random_trace(width, 6, 40, seed=1)
        assert trace.scores.shape == (40, candidates(width, 6)) == (40, len(trace.levels))
        assert (trace.right >= 0).any()
        for level in range(6):
            found = trace.right[:, level] >= 0
            assert (trace.levels[trace.right[found, level]] == level + 1).all()
            assert level == 0 or (found <= (trace.right[:, level - 1] >= 0)).all()


def test_a_window_is_so_many_rounds_of_replay() -> None:
    answers = some_answers(range(1))
    actions: tuple[Action, ...] = ((1, 0, 0), (6, 3, 2), (12, 6, 3))
    env = RespsWindow(answers, SURFACE, 0.1, actions, hold=10, policy_ms=0.5)
    for index, action in enumerate(actions):
        observation, _ = env.reset(seed=0)
        assert observation.dtype == np.float32
        assert observation.tolist() == answers[0][2].features[0].astype(np.float32).tolist()
        total, windows, done, tokens = 0.0, 0, False, 0
        while not done:
            observation, reward, done, cut, info = env.step(index)
            total, windows, tokens = total + reward, windows + 1, tokens + info["window"].tokens
            assert not cut
            assert info["window"].cycles == 10 or done
            assert done or observation.tolist() == answers[0][2].features[tokens].astype(np.float32).tolist()
        whole = replay(FixedPolicy(TreeSpec(*action)), answers, SURFACE)
        assert windows == -(-whole.cycles // 10)
        assert total == pytest.approx(whole.tokens - 0.1 * (whole.milliseconds + 0.5 * windows))


def test_a_window_can_be_played_by_ltd() -> None:
    answers = some_answers(range(1))
    actions: tuple[Action, ...] = ((12, 6, 3),)
    env = RespsWindow(
        answers, SURFACE, 0.1, actions, hold=1000, under=lambda spec: Ltd(likely_enough, None, (12, 6, 3), slow=FixedPolicy(spec))
    )
    env.reset(seed=0)
    _, reward, done, _, _ = env.step(0)
    whole = replay(Ltd(likely_enough, None, (12, 6, 3)), answers, SURFACE)
    assert done
    assert len(whole.trees) > 1
    assert reward == pytest.approx(whole.tokens - 0.1 * whole.milliseconds)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("rounds", [1, 7])
def test_ltds_rounds_are_those_of_replay(every: int, rounds: int) -> None:
    answers, sizes = some_answers(range(1)), (1, 3, 6, 12)
    tree: Action = (12, 6, 3)
    policy = Ltd(likely_enough, by_places, tree, every, sizes)
    whole = replay(policy, answers, SURFACE)
    assert len({depth for _, depth, _ in whole.trees}) > 2
    assert len({nodes for nodes, _, _ in whole.trees}) > 2
    depth = LtdDepth(answers, SURFACE, 0.1, tree, policy.budget, every, rounds, policy_ms=0.5)
    size = LtdSize(answers, SURFACE, 0.1, tree, sizes, policy.deepen, rounds, policy_ms=0.5)
    for env, net, calls_a_round in ((depth, likely_enough, None), (size, by_places, 1)):
        observation, _ = env.reset(seed=0)
        total, calls, played, place = 0.0, 0, Replay(), 0
        while place < 50:
            observation, reward, done, _, info = env.step(int(np.argmax(net(observation[None]))))
            total, calls = total + reward, calls + 1
            if info:
                played.cycles, place = played.cycles + 1, place + info["tokens"]
                played.trees[info["tree"]] += 1
            assert info or reward == 0
            if done and place < 50:
                observation, _ = env.reset()
        assert played.trees == whole.trees
        assert calls_a_round is None or calls == played.cycles
        assert total == pytest.approx(whole.tokens - 0.1 * (whole.milliseconds + 0.5 * calls))


def test_environments_say_what_they_lack() -> None:
    answers = some_answers(range(1))
    with pytest.raises(ValueError, match="no traces of width 4"):
        RespsWindow(answers, SURFACE, 0.1, ((6, 3, 4),))
    with pytest.raises(ValueError, match="no traces of width 4"):
        LtdSize(answers, SURFACE, 0.1, (6, 3, 4), (6,), lambda growing: True)
    with pytest.raises(ValueError, match="nothing to decide"):
        LtdDepth(answers, SURFACE, 0.1, (6, 3, 3), lambda growing: 6, every=3)
    with pytest.raises(ValueError, match="needs answers"):
        RespsWindow([], SURFACE, 0.1, ((1, 0, 0),))


@pytest.mark.filterwarnings("ignore:.*observation space")  # features have no bounds
def test_gymnasium_accepts_them() -> None:
    from gymnasium.utils.env_checker import check_env

    answers = some_answers()
    check_env(RespsWindow(answers, SURFACE, 0.1, ((1, 0, 0), (6, 3, 2))), skip_render_check=True)
    check_env(LtdDepth(answers, SURFACE, 0.1, (6, 3, 3), lambda growing: 6), skip_render_check=True)
    check_env(LtdSize(answers, SURFACE, 0.1, (6, 3, 3), (1, 6), lambda growing: True), skip_render_check=True)


# Learning. The best of the toy is known: all of the chain where the draft is right, none of it where it is wrong.


def toy_lesson() -> object:
    from export.tuning.ppo import Lesson

    return Lesson(toy_answers(), toy_answers(2), SURFACE, rate=0.15)


def best_of_toy() -> float:
    easy, hard = toy_answers(2)
    done = [replay(FixedPolicy(TreeSpec(*TREE)), [easy], SURFACE), replay(FixedPolicy(PLAIN), [hard], SURFACE)]
    return sum(each.tokens for each in done) / sum(each.milliseconds for each in done)


def at_random() -> float:
    return replay(Held(Resps(constant(0.0, 0.0, 0.0), ACTIONS, temperature=1.0), 10), toy_answers(40), SURFACE).rate


@pytest.mark.parametrize("entropy", [0.01, 0.1])
def test_resps_learns_when_the_draft_is_right(entropy: float) -> None:
    from export.tuning.learn import RESPS, learn_resps
    from export.tuning.ppo import Limits

    shares: list[float] = []
    settings = replace(RESPS, learning_rate=2e-3, entropy=entropy)
    learned = learn_resps(toy_lesson(), ACTIONS, Limits(1500, 20, seed=1, progress=shares.append), settings)  # type: ignore[arg-type]
    assert learned.rate == pytest.approx(best_of_toy(), rel=1e-6)
    assert learned.rate > 1.1 * at_random()
    assert learned.rate == max(rate for _, rate in learned.curve)
    policy = Resps(learned.net, ACTIONS)
    assert policy.choose(seen((1, -1, 1, -1))) == TreeSpec(*TREE)
    policy.begin()
    assert policy.choose(seen((-1, 1, 1, -1))) == PLAIN
    assert shares[0] < 0.05
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_ltd_learns_when_to_stop_and_what_to_verify() -> None:
    from export.tuning.learn import LTD_DEPTH, LTD_SIZE, learn_ltd
    from export.tuning.ppo import Limits

    small = {"rollout": 128, "batch": 32, "envs": 4, "learning_rate": 2e-3, "hidden": (32,), "critic": (32,)}
    depth, size = learn_ltd(
        toy_lesson(),  # type: ignore[arg-type]
        TREE,
        (1, 3, 7),
        Limits(1200, 10, seed=1),
        depth_settings=replace(LTD_DEPTH, **small),  # type: ignore[arg-type]
        size_settings=replace(LTD_SIZE, **small),  # type: ignore[arg-type]
    )
    assert depth is not None
    assert size is not None
    policy = Ltd(depth.net, size.net, TREE, sizes=(1, 3, 7))
    trees = replay(policy, toy_answers(2), SURFACE).trees
    assert trees.most_common(1)[0][0] == (1, 1, 1)  # one level is always drafted
    assert trees[7, 6, 1] >= 8  # 60 tokens at 7 a round
    assert set(trees) == {(1, 1, 1), (7, 6, 1)}


def test_ltd_turns_have_names() -> None:
    from export.tuning.learn import learn_ltd
    from export.tuning.ppo import Limits

    with pytest.raises(ValueError, match="'width'"):
        learn_ltd(toy_lesson(), TREE, (1,), Limits(10), turns=("width",))  # type: ignore[arg-type]


def test_weights_leave_and_enter_the_trainer_unchanged() -> None:
    import torch

    from export.tuning.learn import RESPS
    from export.tuning.ppo import Limits, _load, _ppo, layers_of

    def environment() -> RespsWindow:
        return RespsWindow(toy_answers(), SURFACE, 0.1, ACTIONS)

    model = _ppo(environment, RESPS, Limits(100, seed=3))
    net = random_net((4, 128, 128, 3), "tanh", normalise=True)
    _load(model, net)
    again = Mlp(layers_of(model), "tanh", normalise=True)
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    with torch.no_grad():
        logits = model.policy.get_distribution(torch.from_numpy(x)).distribution.logits.numpy()
    logits -= logits.mean(-1, keepdims=True)  # torch gives log-probabilities
    np.testing.assert_allclose(again(x) - again(x).mean(-1, keepdims=True), logits, atol=1e-5)
    np.testing.assert_array_equal(again(x), net(x))


def test_time_ends_a_training() -> None:
    from export.tuning.learn import RESPS, learn_resps
    from export.tuning.ppo import Limits

    learned = learn_resps(toy_lesson(), ACTIONS, Limits(10**7, 0.2), RESPS)  # type: ignore[arg-type]
    assert learned.curve[-1][0] < 10**5
