"""A worker of benchmarks.speed: timm's model of the same name in PyTorch, on a GPU if there is one.

An interpreter with torch and timm runs this file; it needs neither jax nor this project. Training is forward,
softmax cross-entropy on soft targets, backward, AdamW (biases, norms and encodings without decay); images and targets
stay on the device. bfloat16 means autocast, as timm trains. Mixing, erasing and the weight average are timm's, with the
config's numbers, like ours; 0 turns one off. Without mixing, targets are not smoothed. Images come normalised, where
ours normalises uint8; mixing.order, clipping, ema_warmup and weight_decay are not read.
"""

import contextlib
from typing import Any

import turns  # in this file's folder, which Python puts first on the path


class Timm(turns.Side):
    """Case: model, num_classes, image_size, depth, drop_path_rate, batch_size, dtype, training, compile, threads, and
    config, ours as a dict, for mixing, label_smoothing and ema_decay.
    """

    def open(self, case: dict[str, Any]) -> dict[str, Any]:
        """-> platform, device_kind, device_count (1), versions, compiled."""
        import torch

        if case["threads"]:
            torch.set_num_threads(case["threads"])
        timm = import_timm(torch)
        if not timm.is_model(case["model"]):
            raise ValueError(f"timm {timm.__version__} has no {case['model']}")
        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = self._device.type == "cuda"
        torch.manual_seed(0)
        size = case["image_size"]
        taken_over = {key: case[key] for key in ("num_classes", "depth", "drop_path_rate")}
        model = timm.create_model(case["model"], img_size=size, **taken_over).to(self._device)
        compiled = on_gpu if case["compile"] == "auto" else case["compile"] == "yes"
        images = torch.rand(case["batch_size"], 3, size, size, device=self._device) * 2 - 1
        self._dtype = case["dtype"]
        if case["training"]:
            self._step = self._training(model, compiled, self._batches(images, case), case["config"])
        else:
            self._step = self._forward(model, images, compiled)
        return {
            "platform": "gpu" if on_gpu else "cpu",
            "device_kind": torch.cuda.get_device_name(0) if on_gpu else "cpu",
            "device_count": 1,
            "versions": {"torch": torch.__version__, "timm": timm.__version__},
            "compiled": compiled,
            "torch_threads": torch.get_num_threads(),
        }

    def _autocast(self) -> Any:
        if self._dtype == "float32":
            return contextlib.nullcontext()
        return self._torch.autocast(self._device.type, dtype=getattr(self._torch, self._dtype))

    def _batches(self, images: Any, case: dict[str, Any]) -> Any:
        """Returns a function that makes a step's images and soft targets: mixed and erased as the config says."""
        from timm.data import Mixup
        from timm.data.random_erasing import RandomErasing

        torch, mixing, classes = self._torch, case["config"]["mixing"], case["num_classes"]
        labels = torch.randint(classes, (case["batch_size"],), device=self._device)
        one_hot = torch.nn.functional.one_hot(labels, classes).float()
        mix = erase = None
        if mixing["probability"] and (mixing["mixup_alpha"] or mixing["cutmix_alpha"]):
            if case["batch_size"] % 2:
                raise ValueError("timm mixes only even batches")
            mix = Mixup(
                mixing["mixup_alpha"],
                mixing["cutmix_alpha"],
                prob=mixing["probability"],
                switch_prob=mixing["cutmix_probability"],
                label_smoothing=case["config"]["label_smoothing"],
                num_classes=classes,
            )
        if probability := mixing["erase_probability"]:
            limits = *mixing["erase_area"], *mixing["erase_aspect"]
            erase = RandomErasing(probability, *limits, mode="pixel", device=self._device)

        def batch() -> tuple[Any, Any]:
            made = (images.clone(), one_hot) if mix is None else mix(images.clone(), labels)
            return made if erase is None else (erase(made[0]), made[1])

        return batch if mix or erase else lambda: (images, one_hot)

    def _training(self, model: Any, compiled: bool, batch: Any, config: dict[str, Any]) -> Any:
        """Returns a function that runs one training step."""
        torch = self._torch
        model.train()
        undecayed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
        decays = {True: [], False: []}
        for name, parameter in model.named_parameters():
            decays[parameter.ndim > 1 and name not in undecayed].append(parameter)
        groups = [{"params": decays[True], "weight_decay": 0.05}, {"params": decays[False], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-4)
        apply = torch.compile(model) if compiled else model
        average = None
        if config["ema_decay"]:
            from timm.utils import ModelEmaV3

            average = ModelEmaV3(model, decay=config["ema_decay"])

        def step() -> None:
            images, targets = batch()
            with self._autocast():
                logits = apply(images)
            loss = torch.nn.functional.cross_entropy(logits.float(), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average is not None:
                average.update(model)

        return step

    def _forward(self, model: Any, images: Any, compiled: bool) -> Any:
        """Returns a function that computes the logits of one batch."""
        torch = self._torch
        model.eval()
        apply = torch.compile(model) if compiled else model

        def step() -> None:
            with torch.inference_mode(), self._autocast():
                apply(images)

        return step

    def run(self, steps: int) -> None:
        """See Side."""
        for _ in range(steps):
            self._step()
        if self._device.type == "cuda":
            self._torch.cuda.synchronize()

    def watch_memory(self) -> None:
        """See Side."""
        if self._device.type == "cuda":
            self._torch.cuda.reset_peak_memory_stats()
        else:
            turns.reset_peak_memory()

    def memory(self) -> tuple[int | None, str]:
        """See Side."""
        if self._device.type == "cuda":
            return self._torch.cuda.max_memory_allocated(), "peak of torch's allocated device memory while stepping"
        return turns.peak_memory()

    def out_of_memory(self, error: Exception) -> bool:
        """See Side; on the CPU torch raises a plain RuntimeError."""
        return isinstance(error, MemoryError | self._torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def import_timm(torch: Any) -> Any:
    """Imports timm, even if torchvision lacks its compiled operators (a CPU build of torch)."""
    try:
        import timm
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import_timm.operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            import_timm.operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import timm
    return timm


if __name__ == "__main__":
    turns.serve(Timm)
