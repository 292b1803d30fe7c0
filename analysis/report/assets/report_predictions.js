/* What a trial's model predicts, on the trial's page: which classes it takes for which, how far its
   probabilities can be trusted, and the images on which it is most wrong. */
"use strict";
const MOST_IN_MATRIX = 20;
const MOST_LISTED = 12;

/* Parts of the trial's page; the live page asks the server for what it has not got. */
function predictionsOf(row, known = D.predictions) {
  const { trials, names, images } = known;
  const found = trials[row];
  if (!found) return typeof askPredictions === "function" ? askPredictions(row) : [];
  if (found.problem) return [articleOf("Predictions", found.problem)];
  const name = (number_) => names[found.names]?.[number_] ?? String(number_);
  return [
    confusionOf(found, name, names[found.names]?.length ?? 0),
    calibrationOf(found),
    samplesOf(found, name, images),
  ].filter(Boolean);
}
function articleOf(title, note, ...body) {
  return el("article", {}, el("h3", {}, title), el("p", { class: "note" }, note), ...body);
}
/* A matrix of few classes; of many, what is confused most often. */
function confusionOf({ confusion, part }, name, classes) {
  const wrong = confusion.filter(([label, predicted]) => label !== predicted);
  if (!confusion.length) return null;
  if (classes > MOST_IN_MATRIX || !classes) {
    const rows = wrong
      .slice(0, MOST_LISTED)
      .map(([label, predicted, images]) =>
        lineOf(clip(name(label), 30), [clip(name(predicted), 30), number(images)]),
      );
    const note = `What is confused most often, of the ${part} images.`;
    return rows.length ? partOf("Confusion", ["Class", "Taken for", "Images"], rows, note) : null;
  }
  const counts = Array.from({ length: classes }, () => new Array(classes).fill(0));
  for (const [label, predicted, images] of confusion)
    if (label < classes && predicted < classes) counts[label][predicted] = images;
  const order = counts.map((_, i) => i);
  const rows = counts.map((line, label) => {
    const total = line.reduce((a, b) => a + b, 0) || 1;
    const cells = line.map((images, predicted) => {
      const share = Math.round((100 * images) / total);
      const colour = label === predicted ? "good" : "bad";
      const fill = images ? `color-mix(in srgb, var(--${colour}) ${8 + share / 4}%, transparent)` : "";
      const cell = el("td", { class: "n" }, images ? number(images) : "");
      cell.style.background = fill;
      return cell;
    });
    return el("tr", {}, el("th", { scope: "row" }, clip(name(label), 16)), ...cells);
  });
  const heads = ["class", ...order.map((i) => clip(name(i), 8))];
  const note = `Rows are the classes of the ${part} images, columns what they are taken for.`;
  const made = partOf("Confusion", heads, rows, note);
  made.classList.add("confusion");
  return made;
}
/* Accuracy against probability: on the diagonal a probability is what it says. */
function calibrationOf({ calibration, error, part }) {
  if (!calibration.length) return null;
  const [size, left, low] = [220, 48, 36];
  const x = (share) => left + size * share;
  const y = (share) => 8 + size * (1 - share);
  const picture = svg("svg", {
    viewBox: `0 0 ${left + size + 26} ${size + 8 + low}`,
    class: "reliability",
    role: "img",
    "aria-label": "accuracy against probability of the predicted class",
  });
  for (const share of [0, 0.5, 1]) {
    picture.append(
      svg("line", { x1: x(share), x2: x(share), y1: y(0), y2: y(1) }),
      svg("line", { x1: x(0), x2: x(1), y1: y(share), y2: y(share) }),
      svg("text", { x: x(share), y: y(0) + 16, "text-anchor": "middle" }, percent(share, 0)),
      svg("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, percent(share, 0)),
    );
  }
  picture.append(
    svg("line", { x1: x(0), x2: x(1), y1: y(0), y2: y(1), class: "ideal" }),
    svg("text", { x: x(0.5), y: y(0) + 31, "text-anchor": "middle" }, "probability"),
  );
  const most = Math.max(...calibration.map(([images]) => images));
  for (const [images, accuracy, confidence] of calibration) {
    const mark = svg("circle", {
      cx: x(confidence),
      cy: y(accuracy),
      r: 2.5 + 6 * Math.sqrt(images / most),
    });
    const words = `${number(images)} images: ${percent(accuracy)} right at ${percent(confidence)}`;
    mark.append(svg("title", {}, words));
    picture.append(mark);
  }
  const note =
    `How often the predicted class is right, by its probability, on the ${part} images;` +
    ` expected calibration error ${percent(error, 2)}. Below the line the model is too sure.`;
  return articleOf("Calibration", note, picture);
}
function samplesOf({ samples, part }, name, images) {
  if (!samples.length) return null;
  const pictures = samples.map(([label, predicted, confidence, image]) => {
    const isRight = label === predicted;
    const said = isRight ? "right" : `taken for ${clip(name(predicted), 20)}`;
    const words = `${clip(name(label), 20)}, ${said}, ${percent(confidence, 0)}`;
    return el(
      "figure",
      { class: isRight ? null : "wrong" },
      el("img", { src: `data:image/png;base64,${images[image]}`, alt: words }),
      el("figcaption", {}, words),
    );
  });
  return articleOf(
    "Hardest images",
    `Those of the ${part} part with the largest loss: class, prediction and its probability.`,
    el("div", { class: "samples" }, ...pictures),
  );
}
