"""Distillation: the loss by hand, the teacher's normalisation and classes, and whole runs."""

import dataclasses
import math

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.helpers import TinyPipeline, checked_config, random_variables, read_state, tiny_config
from tnt_jax.training import agreement, distillation, loop, losses, setup, steps


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a tiny run."""
    config = tiny_config(steps=5, data__mean=(0.2, 0.3, 0.4), data__std=(0.9, 1.0, 1.1))
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    loop.train(setup.prepare(config, folder, TinyPipeline(config)))
    return folder


def by_hand(student, teacher, kind, temperature):
    """Computes the loss of one image in plain Python."""

    def probabilities(logits):
        powers = [math.exp(logit / temperature) for logit in logits]
        return [power / sum(powers) for power in powers]

    if kind == "hard":
        temperature = 1.0
        return -math.log(probabilities(student)[max(range(len(teacher)), key=lambda k: teacher[k])])
    pairs = zip(probabilities(teacher), probabilities(student), strict=True)
    return temperature**2 * sum(p * math.log(p / q) for p, q in pairs)


@pytest.mark.parametrize(("kind", "temperature"), [("soft", 1.0), ("soft", 3.0), ("hard", 3.0)])
def test_the_loss_is_the_one_written_by_hand(kind, temperature):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 2, (2, 6, 4)).astype(np.float32)
    config = checked_config(distillation__kind=kind, distillation__temperature=temperature, distillation__weight=0.3)
    right = [by_hand(*pair, kind, temperature) for pair in zip(student.tolist(), teacher.tolist(), strict=True)]
    found = losses.distillation_losses(jnp.asarray(student), jnp.asarray(teacher), config)
    np.testing.assert_allclose(found, right, rtol=2e-5)
    targets, mask = jax.nn.one_hot(jnp.arange(6) % 4, 4), jnp.array([1, 1, 1, 1, 0, 0.0])
    total, weight = losses.batch_loss(jnp.asarray(student), targets, mask, config, None, jnp.asarray(teacher))
    alone, _ = losses.batch_loss(jnp.asarray(student), targets, mask, config)
    assert weight == 4 and float(total) == pytest.approx(0.7 * float(alone) + 0.3 * sum(right[:4]), rel=1e-5)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it():
    logits = jnp.array([[1.0, -2.0, 0.5]])
    config = checked_config(distillation__temperature=2.0)
    assert float(losses.distillation_losses(logits, logits, config)[0]) == 0
    assert float(losses.distillation_losses(logits, -logits, config)[0]) > 0.1


def test_the_teacher_sees_the_students_images_at_its_own_mean_and_deviation(trained):
    config = checked_config(distillation__teacher=str(trained))
    teacher = distillation.load_teacher(config, 4, TinyPipeline.class_names)
    assert teacher.mean == (0.2, 0.3, 0.4) and teacher.classes is None
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3)) / 255
    own = (pixels - np.array(teacher.mean)) / np.array(teacher.std)
    expected = teacher.model.apply({"params": teacher.params}, own.astype(np.float32))
    found = teacher.logits(teacher.params, jnp.asarray((pixels - 0.5) / 0.5, jnp.float32), config.data)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_classes_are_those_of_the_same_name(trained):
    config = checked_config(distillation__teacher=str(trained))
    turned = ("blue", "red", "green")
    teacher = distillation.load_teacher(config, 3, turned)
    assert teacher.classes.tolist() == [2, 0, 1]  # indices into red, green, blue, grey
    images = jnp.zeros((1, 8, 8, 3))
    all_of_them = dataclasses.replace(teacher, classes=None).logits(teacher.params, images, config.data)
    np.testing.assert_array_equal(teacher.logits(teacher.params, images, config.data)[0], all_of_them[0, [2, 0, 1]])
    with pytest.raises(ValueError, match="distillation.teacher=.*does not know: 'violet'"):
        distillation.load_teacher(config, 3, ("blue", "red", "violet"))
    with pytest.raises(ValueError, match="it knows 4 classes and the student 5, and they cannot be matched"):
        distillation.load_teacher(config, 5, None)


def test_a_teacher_that_cannot_see_the_students_images_or_speak_of_its_labels_is_refused(trained):
    settings = {"distillation__teacher": str(trained), "model__image_size": 6, "model__patch_size": 2}
    load = distillation.load_teacher
    with pytest.raises(ValueError, match="its patches do not divide .*config.model.image_size=6 .* patch_size=4; use"):
        load(checked_config(**settings, model__word_size=1), 4, None)
    config = checked_config(distillation__teacher=str(trained))
    with pytest.raises(ValueError, match="it knows 3 classes and the student 5"):  # more than the names
        load(config, 5, ("blue", "red", "green"))
    with pytest.raises(ValueError, match="for one label per image, but imagenet2012 has several. Leave it out"):
        load(config, 4, None, several_labels=True)


def test_what_is_no_teacher_is_refused_by_its_key(tmp_path):
    for source, error in (("nowhere", "does not say which model"), (str(tmp_path), "config.json")):
        config = checked_config(distillation__teacher=source)
        with pytest.raises((ValueError, FileNotFoundError), match=f"config.distillation.teacher={source}.*{error}"):
            distillation.load_teacher(config, 4, None)
    assert distillation.load_teacher(checked_config(), 4, None) is None


def test_a_taught_run_resumes_and_its_checkpoints_hold_no_teacher(trained, tmp_path):
    changes = {"distillation__teacher": str(trained), "distillation__weight": 0.9, "checkpoint_every_steps": 3}

    def run(folder, **more):
        config = tiny_config(**changes | more)
        return setup.prepare(config, tmp_path / folder, TinyPipeline(config))

    loop.train(run("whole", steps=6))
    loop.train(run("halves", steps=3))
    second = run("halves", steps=6)
    loop.train(second)
    (state, metadata), (other, _) = (read_state(tmp_path / name) for name in ("whole", "halves"))
    jax.tree.map(np.testing.assert_array_equal, state, other)
    names = flax.traverse_util.flatten_dict(state["params"], sep="/")
    assert names.keys() == flax.traverse_util.flatten_dict(second.teacher.params, sep="/").keys()
    assert set(state) == {"step", "params", "opt_state", "ema_params", "key", "metrics"}
    assert metadata["teacher"] == second.teacher.digest and not list(agreement.resume_notes(second, metadata))
    notes = list(agreement.resume_notes(second, metadata | {"teacher": "another"}))
    assert len(notes) == 1 and "has other weights than then" in notes[0]


def test_with_its_whole_weight_the_labels_do_not_matter(trained):
    model, images = setup.make_model(checked_config(), 4), jnp.ones((4, 8, 8, 3))
    params, key, mask = random_variables(model)["params"], jax.random.key(0), jnp.ones(4)
    found = {}
    for weight in (0.5, 1.0):
        config = checked_config(distillation__teacher=str(trained), distillation__weight=weight, accumulation_steps=2)
        teacher = distillation.load_teacher(config, 4, None)
        for labels in ((0, 1, 2, 3), (3, 3, 3, 3)):
            gradients, _ = steps.loss_and_gradients(
                params,
                key,
                images,
                jax.nn.one_hot(jnp.array(labels), 4),
                mask,
                model=model,
                config=config,
                teach=lambda images, teacher=teacher, data=config.data: teacher.logits(teacher.params, images, data),
            )
            found[weight, labels] = np.asarray(gradients["head"]["kernel"])
    first, second = (found[1.0, labels] for labels in ((0, 1, 2, 3), (3, 3, 3, 3)))
    np.testing.assert_array_equal(first, second)
    assert np.abs(found[0.5, (0, 1, 2, 3)] - found[0.5, (3, 3, 3, 3)]).max() > 1e-3
