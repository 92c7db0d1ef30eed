"""Gathers what launch/quickstart.sh measured into DIR/summary.json.

python -m ldm_jax.evaluation.quickstart DIR SECONDS
"""

import pathlib
import sys

from ldm_jax.base import disk


def main(out: pathlib.Path, seconds: int):
    read = lambda *parts: disk.read_json(out.joinpath(*parts, "summary.json"))
    first_stage, ldm, samples = read("first_stage"), read("ldm"), read("samples")
    reconstruction, quality = read("first_stage", "evaluation"), read("samples", "evaluation")
    summary = {
        "seconds": seconds,
        "psnr_db": reconstruction["psnr_db"],
        "ssim": reconstruction["ssim"],
        "class_accuracy": quality["class_accuracy"],
        "samples": samples["num"],
        "samples_png": samples["samples_png"],
        "images_per_second_train": {
            "first_stage": first_stage.get("images_per_second"),
            "ldm": ldm.get("images_per_second"),
        },
        "first_stage": str(out / "first_stage"),
        "ldm": str(out / "ldm"),
    }
    disk.write_json(out / "summary.json", summary)
    print(f"""
Done in {seconds} s.
  reconstruction, held out   {summary["psnr_db"]:.2f} dB PSNR, SSIM {summary["ssim"]:.3f}
  samples of the right class {100 * summary["class_accuracy"]:.1f} % of {summary["samples"]}
  samples, a row per class   {summary["samples_png"]}
  runs                       {summary["first_stage"]}  {summary["ldm"]}
                             (metrics.jsonl, images/, TensorBoard events, checkpoints/)
  all figures                {out / "summary.json"}""")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
