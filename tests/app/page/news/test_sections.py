"""Only what differs is sent."""

from __future__ import annotations

from app.page.news.sections import news


def test_what_the_page_has_is_not_sent_again() -> None:
    first = news({"bars": [1], "plot": None}, "")
    assert (first["bars"], first["plot"]) == ([1], None)
    assert news({"bars": [1], "plot": None}, first["have"]) == {}
    second = news({"bars": [2], "plot": None}, first["have"])
    assert (second["bars"], "plot" in second) == ([2], False)
    assert news({"bars": [2], "plot": None}, second["have"]) == {}


def test_what_always_changes_is_sent_when_it_matters() -> None:
    first = news({"process": "100.0 MiB"}, "", {"process": 100})
    assert news({"process": "100.4 MiB"}, first["have"], {"process": 100}) == {}
    assert news({"process": "140.0 MiB"}, first["have"], {"process": 140})["process"] == "140.0 MiB"


def test_tokens_that_make_no_sense_are_like_none() -> None:
    for known in (",", ":::", "bars", "bars:", "plot:zzz,bars:1", "\ud800"):
        assert news({"bars": [1]}, known)["bars"] == [1]
