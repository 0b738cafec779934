from conftest import result_of

from headshotkit.config import GenerateConfig
from headshotkit.core.records import Headshot
from headshotkit.core.results import HeadshotsResult, RestoredFace, TriedFidelity
from headshotkit.scoring.ranking import after_restoring, best_of_each, choose_headshots


def shot(prompt_id, attempt, identity, accepted, **measured):
    file = f"{prompt_id}_{attempt}.png"
    return Headshot(file, prompt_id, "", "", 0, attempt, 1.0, identity, accepted, **measured)


SHOTS = [shot("a", 1, 0.2, False), shot("a", 2, 0.6, True), shot("b", 1, None, False), shot("b", 2, 0.1, False),
         shot("c", 1, 0.7, True), shot("c", 2, 0.65, True)]  # fmt: skip


def test_the_best_of_each_prompt_comes_best_first():
    assert [s.file for s in best_of_each(SHOTS)] == ["c_1.png", "a_2.png", "b_2.png"]


def test_a_second_headshot_of_a_prompt_takes_the_place_of_one_that_did_not_pass():
    assert [s.file for s in choose_headshots(SHOTS, 3)] == ["c_1.png", "c_2.png", "a_2.png"]
    assert [s.file for s in choose_headshots(SHOTS, 4)][-1] == "b_2.png"


def test_quality_decides_between_the_equally_alike_and_likeness_counts_up_to_a_photos():
    plain, sharp = (shot(p, 1, 0.6, True, likeness=0.8, quality=q) for p, q in (("a", 0.4), ("b", 0.6)))
    alike, copied = (shot(p, 1, i, True, likeness=i, quality=0.5) for p, i in (("c", 1.0), ("d", 1.3)))
    assert [s.prompt_id for s in best_of_each([plain, sharp])] == ["b", "a"]
    assert [s.prompt_id for s in best_of_each([sharp, alike, copied])] == ["c", "d", "b"]


def test_what_shows_more_of_its_prompt_comes_first_among_the_equally_alike():
    shown, half, not_told = (
        shot(p, 1, 0.6, True, likeness=0.8, quality=0.5, adherence=o) for p, o in (("a", 1.0), ("b", 0.5), ("c", None))
    )
    alike = shot("d", 1, 0.7, True, likeness=0.95, quality=0.5, adherence=0.5)
    assert [s.prompt_id for s in best_of_each([half, shown, not_told, alike])] == ["d", "a", "c", "b"]


def test_what_did_not_pass_comes_last():
    assert [s.accepted for s in choose_headshots(SHOTS, 4)] == [True] * 3 + [False]


def test_a_restored_face_is_judged_by_what_it_shows_now():
    """Identity and sharpness may be mended; what restoring can't mend stays a reason."""
    shots = [
        shot("mended", 1, 0.5, False, reasons=("other_person", "soft_face"), sharpness=2.0),
        shot("still_soft", 1, 0.5, False, reasons=("other_person", "soft_face"), sharpness=2.0),
        shot("still_other", 1, 0.3, False, reasons=("other_person",)),
        shot("twin", 1, 0.7, False, reasons=("near_twin",)),
        shot("unrestored", 1, 0.56, True),
    ]

    def face(name: str, identity: float, sharpness: float, kept: str = "restored") -> RestoredFace:
        refused, taken = (
            TriedFidelity(fidelity, harm, identity, sharp, None, None, (), {})
            for fidelity, harm, sharp in ((0.0, ("eyes",), 9.0), (0.5, (), sharpness))
        )
        return RestoredFace(f"{name}_1.png", kept, 0.5, identity, tried=(refused, taken))

    faces = [face("mended", 0.6, 5.0), face("still_soft", 0.6, 2.5), face("still_other", 0.4, 5.0),
             face("twin", 0.8, 5.0), face("unrestored", 0.9, 5.0, "unrestored")]  # fmt: skip
    generated = result_of(
        HeadshotsResult, headshots=[s.to_dict() for s in shots], delivered=[s.file for s in shots],
        pass_mark={"mark": 0.55, "own_median": 0.8, "reason": "r"}, config=GenerateConfig(min_sharpness=4.0).to_dict(),
    )  # fmt: skip
    made = {s.prompt_id: s for s in after_restoring(generated, faces)}
    assert [name for name, one in made.items() if one.accepted] == ["mended", "unrestored"] == list(made)[:2]
    assert made["still_soft"].reasons == ("soft_face",) and made["still_other"].reasons == ("other_person",)
    assert made["twin"].reasons == ("near_twin",) and made["unrestored"].identity == 0.56
    mended = made["mended"]
    assert (mended.identity, mended.likeness, mended.sharpness) == (0.6, 0.75, 5.0)
    assert [s.file for s in after_restoring(generated, ())][0] == "unrestored_1.png"
