"""What there is to choose, and how ties are broken."""

from headcam.evaluation.finetuning.selection import choose, epoch_choices, needs_search
from headcam.evaluation.protocols import Finetune


def test_numbers_of_epochs():
    assert epoch_choices(Finetune(epochs=4)) == (1, 2, 3, 4)
    assert epoch_choices(Finetune(epochs=7, choose_epoch_every=3)) == (3, 6, 7)
    assert epoch_choices(Finetune(epochs=6, choose_epoch_every=3)) == (3, 6)
    assert epoch_choices(Finetune(epochs=2, choose_epoch_every=5)) == (2,)
    assert epoch_choices(Finetune(epochs=50, schedule="cosine")) == (50,)


def test_no_search_without_a_choice():
    assert needs_search(Finetune(epochs=2))
    assert not needs_search(Finetune(epochs=1))
    assert not needs_search(Finetune(epochs=50, schedule="cosine"))
    assert needs_search(Finetune(epochs=50, schedule="cosine", lr=(1e-3, 1e-4)))
    assert not needs_search(Finetune(epochs=1, lr=(1e-3, 1e-3)))


def test_the_best_is_chosen_and_of_equals_the_shorter_then_the_slower():
    assert choose({(1e-3, 1): 0.2, (1e-3, 2): 0.4, (1e-4, 1): 0.3}) == (1e-3, 2)
    assert choose({(1e-3, 3): 0.4, (1e-3, 2): 0.4, (1e-4, 3): 0.4, (1e-4, 2): 0.4}) == (1e-4, 2)
