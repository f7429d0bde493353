"""Facts of others that do not have the form of facts are left out of a card."""

from fgaseg.weights.model_card import known_facts


def test_results_are_figures_by_set():
    good = {"results": {"val": {"miou_gt": 0.5}}}
    assert known_facts(good) == good
    for wrong in ("good", {"miou_gt": "0.5"}, {"miou_gt": None}):
        assert known_facts({"results": {"val": wrong}, "trained_on": "photos"}) == {"trained_on": "photos"}
    assert known_facts(["results"]) == {}
