"""The 101 actions of UCF101, as its folders are named (Soomro et al. 2012)."""

from collections.abc import Sequence

_NAMES = """
ApplyEyeMakeup ApplyLipstick Archery BabyCrawling BalanceBeam BandMarching BaseballPitch Basketball BasketballDunk
BenchPress Biking Billiards BlowDryHair BlowingCandles BodyWeightSquats Bowling BoxingPunchingBag BoxingSpeedBag
BreastStroke BrushingTeeth CleanAndJerk CliffDiving CricketBowling CricketShot CuttingInKitchen Diving Drumming
Fencing FieldHockeyPenalty FloorGymnastics FrisbeeCatch FrontCrawl GolfSwing Haircut HammerThrow Hammering
HandstandPushups HandstandWalking HeadMassage HighJump HorseRace HorseRiding HulaHoop IceDancing JavelinThrow
JugglingBalls JumpRope JumpingJack Kayaking Knitting LongJump Lunges MilitaryParade Mixing MoppingFloor Nunchucks
ParallelBars PizzaTossing PlayingCello PlayingDaf PlayingDhol PlayingFlute PlayingGuitar PlayingPiano PlayingSitar
PlayingTabla PlayingViolin PoleVault PommelHorse PullUps Punch PushUps Rafting RockClimbingIndoor RopeClimbing
Rowing SalsaSpin ShavingBeard Shotput SkateBoarding Skiing Skijet SkyDiving SoccerJuggling SoccerPenalty StillRings
SumoWrestling Surfing Swing TableTennisShot TaiChi TennisSwing ThrowDiscus TrampolineJumping Typing UnevenBars
VolleyballSpiking WalkingWithDog WallPushups WritingOnBoard YoYo
"""
CLASSES = tuple(_NAMES.split())


def other_numbers(classes: Sequence[str]) -> str:
    """A sentence on the numbers of UCF101's classes where only a part of them is there; "" for other classes, or all.

    classes: names of classes in the order of their labels, which count from 0; the official list counts from 1, so
        that a label by the list is the class's number less one.
    """
    if not classes or not set(classes) <= set(CLASSES) or tuple(classes) == CLASSES:
        return ""
    shown = ", ".join(f"{name} is {k} here and {CLASSES.index(name)} by the list" for k, name in enumerate(classes[:3]))
    more = ", ..." if len(classes) > 3 else ""
    return (
        f"{len(classes)} of UCF101's 101 classes are here, with labels 0 to {len(classes) - 1} in the order of their "
        f"names, not the official numbers less one ({shown}{more})"
    )
