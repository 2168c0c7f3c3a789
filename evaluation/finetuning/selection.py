"""What is chosen before the test, and on which labels: learning rate and number of epochs, on a fifth of the draw.

With 13 labels a class, 2 are set aside. The networks of the search are trained on the rest, scored on the fifth, and
thrown away; the one that is scored on the test pictures is trained on all labels, from the start, at the chosen values.
"""

from headcam.evaluation.protocols import Finetune


def epoch_choices(protocol: Finetune) -> tuple[int, ...]:
    """Numbers of epochs that are compared, ascending.

    With a constant rate, a training of e epochs is the beginning of every longer one, so one training has them all.
    With a cosine it is not, and its length is no choice.
    """
    if protocol.schedule == "cosine":
        return (protocol.epochs,)
    every = range(protocol.choose_epoch_every, protocol.epochs, protocol.choose_epoch_every)
    return (*every, protocol.epochs)


def needs_search(protocol: Finetune) -> bool:
    """Whether there is anything to choose."""
    return len(set(protocol.lr)) * len(epoch_choices(protocol)) > 1


def choose(selection_top1: dict[tuple[float, int], float]) -> tuple[float, int]:
    """The (learning rate, epochs) of the highest top-1; where several share it, fewer epochs, then the smaller rate."""
    return min(selection_top1, key=lambda choice: (-selection_top1[choice], choice[1], choice[0]))
