"""Muon beside another optimizer."""

import copy

import pytest
import torch
from tiny_training import tiny_trainer
from utils import tiny_config

from classquery import ClassQueryForVideoActionDetection
from classquery.configuration.arguments import OptimizationArguments
from classquery.engine.training.matrices import Muon, MuonForMatrices
from classquery.engine.training.optimization import parameter_groups


def make_optimizer(model, **arguments):
    groups = parameter_groups(
        model,
        learning_rate=0.01,
        weight_decay=0.0,
        backbone_learning_rate_factor=0.5,
        matrix_learning_rate=0.1,
    )
    return MuonForMatrices(groups, torch.optim.AdamW, lr=0.01, **arguments)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ClassQueryForVideoActionDetection(tiny_config(class_readout="per_class"))


def set_gradients(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_matrices_are_the_weights_of_linear_layers(model):
    groups = {group["name"]: group for group in make_optimizer(model).param_groups}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = {names[id(p)] for part in ("head", "backbone") for p in groups[f"{part} matrices"]["params"]}

    assert matrices == {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert "class_readout" not in matrices
    rates = {name: group["lr"] for name, group in groups.items()}
    assert rates == pytest.approx(
        {
            "backbone": 0.005,
            "backbone without decay": 0.005,
            "backbone matrices": 0.05,
            "head": 0.01,
            "head without decay": 0.01,
            "head matrices": 0.1,
        }
    )


def test_matrices_move_in_all_directions_alike_and_the_rest_as_by_its_own_optimizer(model):
    other = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model)
    set_gradients(model)
    gradient = model.actor_head.weight.grad
    # One direction is a thousand times as strong as the others.
    gradient[0] *= 1000
    optimizer.step()

    change = model.actor_head.weight.detach() - before["actor_head.weight"]
    # Five Newton-Schulz steps bring singular values to between 0.7 and 1.2, but for those that begin near zero.
    lengths = torch.linalg.svdvals(change) / (0.1 * 0.2 * 32**0.5)
    assert lengths.max() < 1.3
    assert lengths.max() / lengths.min() < 20
    assert torch.linalg.svdvals(gradient).max() / torch.linalg.svdvals(gradient).min() > 500

    set_gradients(other)
    alone = torch.optim.AdamW(parameter_groups(other, learning_rate=0.01, weight_decay=0.0))
    alone.step()
    for name in ("class_readout", "model.decoder.class_queries", "actor_head.bias", "model.reference_boxes"):
        assert torch.equal(model.get_parameter(name), other.get_parameter(name))


def test_matrices_move_as_by_the_muon_of_torch(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 4), (4, 6), (6, 4), (5, 5), (1, 6)]
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [torch.nn.Parameter(parameter.detach().double()) for parameter in ours]
    # That of torch rounds to bfloat16; in this test it does not.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    arguments = {"lr": 0.1, "weight_decay": 0.3, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = Muon(ours, **arguments), torch.optim.Muon(theirs, **arguments)
    for _ in range(3):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn(own.shape, generator=generator)
            other.grad = own.grad.double()
        for optimizer in optimizers:
            optimizer.step()

    for own, other in zip(ours, theirs, strict=True):
        # Float32 against float64.
        torch.testing.assert_close(own.double(), other, rtol=0, atol=1e-5)


def test_state_is_saved_and_loaded_as_of_one_optimizer(model):
    other = copy.deepcopy(model)
    optimizer = make_optimizer(model)
    for seed in range(3):
        set_gradients(model, seed)
        optimizer.step()
        if seed == 1:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    resumed = make_optimizer(other)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    set_gradients(other, 2)
    resumed.step()

    assert all(torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True))


def test_run_with_muon_and_denoising_resumes_bit_for_bit(demo_dir, tmp_path):
    settings = {
        "max_steps": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "optimization": {"matrix_optimizer": "muon", "matrix_learning_rate": 1e-3},
        "model": {"denoising_groups": 2, "initial_boxes": "grid"},
    }
    trainer = tiny_trainer(demo_dir, tmp_path, **settings)
    assert isinstance(trainer.create_optimizer(), MuonForMatrices)
    trainer.train()
    expected = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    assert {"learning_rate/head", "learning_rate/head matrices"} <= trainer.state.log_history[0].keys()

    resumed = tiny_trainer(demo_dir, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))

    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())


def test_there_may_be_no_matrices_to_train():
    frozen = ClassQueryForVideoActionDetection(tiny_config())
    for module in frozen.modules():
        if isinstance(module, torch.nn.Linear):
            module.requires_grad_(False)
    set_gradients(frozen)

    make_optimizer(frozen).step()


def test_rate_of_matrices_needs_muon():
    with pytest.raises(ValueError, match="--matrix_learning_rate must be more than 0, with --matrix_optimizer muon"):
        OptimizationArguments(matrix_learning_rate=0.1)
    with pytest.raises(ValueError, match="--matrix_learning_rate must be more than 0"):
        OptimizationArguments(matrix_optimizer="muon", matrix_learning_rate=0.0)
