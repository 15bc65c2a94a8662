"""Prepares a tfds data set before training: downloads it, or unpacks archives that were fetched by hand.

python -m tnt_jax.tools.prepare imagenet2012 --directory=DIRECTORY

Training does the same when it finds no prepared set, but then an accelerator waits.
(tfds' own command, tfds build, needs Apache Beam.) Then train with --config.data.directory=DIRECTORY.
"""

from collections.abc import Sequence

from etils import epath

from tnt_jax.tools import command_line


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares the data set and prints a line about it. arguments: None means sys.argv."""
    parser = command_line.Parser("prepare", __doc__)
    parser.add_argument("name", help="digits, or a name in the tfds catalogue, such as imagenet2012 or cifar10")
    parser.add_argument("--directory", default="", help="target folder (default ~/tensorflow_datasets)")
    options = parser.parse(arguments)
    if options.directory and options.name != "digits" and not epath.Path(options.directory).expanduser().is_dir():
        parser.error(f"--directory={options.directory}: there is no such folder. Create it with mkdir -p.")
    from tnt_jax.data import prepared  # imports TensorFlow, which --help need not wait for

    with command_line.one_message("prepare"):
        builder = prepared.open_builder(options.name, options.directory)
    splits = ", ".join(f"{name} {split.num_examples:,}" for name, split in builder.info.splits.items())
    command_line.log(f"{builder.info.full_name} is prepared in {builder.data_path}: {splits}")


if __name__ == "__main__":
    main()
