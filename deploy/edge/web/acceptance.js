// Which answers count: the manifest's `acceptance` (docs/contract.md, section 2), and what it says of an answer.

export const NONE_OF_THESE = "none of these";
export const UNSURE = "unsure";

const isShare = (value) => typeof value === "number" && value >= 0 && value <= 1;
const FIELDS = {
  probability: isShare,
  right_share: isShare,
  coverage: isShare,
  novelty: Number.isFinite,
  known_share: isShare,
  pictures: (value) => Number.isInteger(value) && value >= 0,
  novelty_sha256: (value) => typeof value === "string",
};

/** The limits {probability, novelty} of a manifest, each null where there is none; null where every answer counts. */
export function rulesOf({ acceptance }) {
  if (acceptance === undefined || acceptance === null) return null;
  if (typeof acceptance !== "object" || Array.isArray(acceptance)) throw new Error("bad acceptance in the manifest");
  for (const [name, sound] of Object.entries(FIELDS)) {
    const value = Object.hasOwn(acceptance, name) ? acceptance[name] : null;
    if (value !== null && !sound(value)) throw new Error(`bad acceptance.${name} in the manifest`);
  }
  const { probability = null, novelty = null } = acceptance;
  if (probability === null && novelty === null) throw new Error("bad acceptance in the manifest: it has no limit");
  return { probability, novelty };
}

/**
 * An answer by its rules: {label, index, known, unsure, text}. label, index: of the most probable class, the first of
 * equals. text: its label, `unsure` or `none of these`. rules: of rulesOf; null accepts every answer.
 */
export function judge({ probabilities, novelty }, classes, rules) {
  const index = probabilities.reduce((best, value, at) => (value > probabilities[best] ? at : best), 0);
  const known = rules === null || rules.novelty === null || novelty <= rules.novelty;
  const unsure = known && rules !== null && rules.probability !== null && probabilities[index] < rules.probability;
  const label = classes[index];
  return { index, label, known, unsure, text: !known ? NONE_OF_THESE : unsure ? UNSURE : label };
}
