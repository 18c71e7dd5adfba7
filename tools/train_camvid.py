"""Train networks on CamVid from scratch, one after the other, by one recipe; stop in time and go on when called again.

    python tools/train_camvid.py enet segnet_vgg16 --minutes 9       # call it until it says that all is done

The recipe below is for a GPU. What differs from it in a network's paper stands in PAPERS, and is a recipe of its own:
`--recipe paper`. A run lies in runs/camvid_NAME (camvid_NAME_paper) and can be stopped at any moment; a finished one is
kept under results/ by tools/keep_run.py.
"""
import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

RECIPE = {  # options of `semseg-course train`, the same for all
    "crop": "352x480", "scale": "0.6,1.7", "look": 0.25, "epochs": 400, "batch-size": 8, "optimizer": "adamw",
    "learning-rate": 0.002, "schedule": "one_cycle", "weight-decay": 0.02, "class-weights": "median",
    "weight-power": 0.5, "mixed-precision": "bf16", "validate-every": 10, "workers": 8}
PAPERS = {  # what the papers say, as far as the command line has it
    "segnet_vgg16": {"optimizer": "sgd", "learning-rate": 0.1, "schedule": "constant", "class-weights": "median",
                     "weight-power": 1.0, "batch-size": 12, "crop": "352x480", "scale": "1,1", "look": 0.0},
    "enet": {"learning-rate": 5e-4, "schedule": "constant", "weight-decay": 2e-4, "batch-size": 10,
             "class-weights": "enet", "weight-power": 1.0, "scale": "1,1", "look": 0.0},
    "fc_densenet56": {"learning-rate": 1e-3, "schedule": "poly", "weight-decay": 1e-4, "batch-size": 3,
                      "class-weights": "none", "crop": "224x224", "scale": "1,1", "look": 0.0},
}
PAPERS |= dict.fromkeys(("fc_densenet67", "fc_densenet103"), PAPERS["fc_densenet56"])


def epochs_done(run: Path) -> int:
    log = run / "log.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0


def command(name: str, run: Path, recipe: dict, extra: list[str]) -> list[str]:
    "What starts the run, or goes on with it."
    start = [sys.executable, "-c", "from semseg_course.cli import main; main()", "train"]
    if (run / "settings.json").is_file(): return [*start, "--resume", str(run)]
    options = [text for option, value in recipe.items() for text in (f"--{option}", str(value))]
    return [*start, "--data", "camvid", "--model", name, "--run", str(run), *options, *extra]


def train(call: list[str], seconds: float) -> bool:
    "Run a training for at most this long; whether it came to its end."
    process = subprocess.Popen(call)
    try: code = process.wait(max(seconds, 0))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait()
        return False
    if code: raise SystemExit(f"{' '.join(call[3:])} ended with code {code}; see above.")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="networks of the zoo")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many; without a limit when not given")
    parser.add_argument("--recipe", choices=("common", "paper"), default="common")
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--option", nargs="+", default=[], help="changes to the recipe, such as epochs=100 workers=2")
    options = parser.parse_args()
    until, changes = time.monotonic() + 60 * options.minutes, dict(text.split("=", 1) for text in options.option)
    for name in options.names:
        kept = f"camvid_{name}" + ("_paper" if options.recipe == "paper" else "")
        run, recipe = options.folder / kept, RECIPE | (PAPERS.get(name, {}) if options.recipe == "paper" else {}) | changes
        if (run / "kept").is_file(): continue
        if not train(command(name, run, recipe, []), until - time.monotonic()):
            raise SystemExit(f"Time is up at epoch {epochs_done(run)} of {name}. Call this again to go on.")
        print(json.dumps(dict(run=str(run), **recipe)))
        subprocess.run([sys.executable, "tools/keep_run.py", str(run), kept], check=True)
        (run / "kept").touch()
    print("All is done.")


if __name__ == "__main__": main()
