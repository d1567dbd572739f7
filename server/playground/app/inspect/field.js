/** A value of a request, typed as its kind wants it: numbers with their range, choices, lists, JSON. */
import { h, useState } from "../core/ui.js";

/** So many steps a slider has. */
const STEPS = 100;

/**
 * @typedef {object} Props
 * @property {string} id
 * @property {import("../api/fields.js").Field} field
 * @property {any} value
 * @property {boolean} isSet
 * @property {unknown} standard what holds if it is not set
 * @property {string} fault
 * @property {(value: unknown) => void} onSet
 * @property {() => void} onReset
 */

/** @param {Props} props */
export function FieldInput(props) {
  switch (props.field.kind) {
    case "number":
    case "integer":
      return h(NumberInput, props);
    case "boolean":
      return h(Choice, { ...props, options: [["true", true], ["false", false]] });
    case "choice":
      return h(Choice, { ...props, options: (props.field.options ?? []).map((one) => /** @type {[string, unknown]} */ ([one, one])) });
    case "texts":
      return h(ListInput, props);
    case "text":
      return h(TextInput, props);
    default:
      return h(JsonInput, props);
  }
}

/** @param {Pick<Props, "id" | "fault">} props */
const common = ({ id, fault }) => ({ id, class: "input small", "aria-describedby": `${id}-about`, "aria-invalid": fault !== "" });

/** @param {unknown} standard */
const shownDefault = (standard) => (standard === undefined ? "not set" : `${standard} (default)`);

/** @param {Props} props */
function NumberInput(props) {
  const { field, value, isSet, standard, onSet, onReset } = props;
  const [typed, setTyped] = useState(/** @type {string | null} */ (null));
  const { minimum, maximum, kind } = field;
  const slides = kind === "number" && minimum !== undefined && maximum !== undefined;
  const wrong = typed !== null && typed !== "" && readNumber(typed, field) === null;
  /** @param {string} text */
  const type = (text) => {
    setTyped(text);
    const number = readNumber(text, field);
    if (text === "") onReset();
    else if (number !== null) onSet(number);
  };
  return h("div", { class: "number" },
    slides && h("input", {
      type: "range", min: minimum, max: maximum, step: (maximum - minimum) / STEPS, value: Number(isSet ? value : (standard ?? minimum)),
      class: isSet ? "" : "unset", "aria-label": `${field.name}, slider`,
      onInput: (/** @type {any} */ event) => (setTyped(null), onSet(Number(event.currentTarget.value))),
    }),
    h("input", {
      ...common(props), "aria-invalid": wrong || props.fault !== "", inputMode: "decimal", autocomplete: "off",
      value: typed ?? (isSet ? String(value) : ""), placeholder: shownDefault(standard),
      onInput: (/** @type {any} */ event) => type(event.currentTarget.value), onBlur: () => wrong || setTyped(null),
    }),
    wrong && h("p", { class: "small fault", role: "alert" }, `Must be ${kind === "integer" ? "a whole number" : "a number"}, ${field.range}`),
  );
}

/**
 * @param {string} text
 * @param {import("../api/fields.js").Field} field
 * @returns {number | null}
 */
function readNumber(text, { kind, minimum = -Infinity, maximum = Infinity, above }) {
  const number = Number(text);
  const fits = Number.isFinite(number) && text.trim() !== "" && number <= maximum && (above ? number > minimum : number >= minimum);
  return fits && (kind === "number" || Number.isSafeInteger(number)) ? number : null;
}

/** @param {Props & {options: [string, unknown][]}} props */
function Choice(props) {
  const { value, isSet, standard, onSet, onReset, options } = props;
  const at = options.findIndex(([, option]) => option === value);
  return h("select", { ...common(props), value: isSet ? String(at) : "", onChange: (/** @type {any} */ event) => (event.currentTarget.value === "" ? onReset() : onSet(options[Number(event.currentTarget.value)][1])) },
    h("option", { value: "" }, shownDefault(standard)),
    options.map(([label], index) => h("option", { key: label, value: String(index) }, label)),
  );
}

/** @param {Props} props */
function TextInput(props) {
  const { value, standard, onSet, onReset } = props;
  const text = typeof value === "string" ? value : value === undefined ? "" : JSON.stringify(value);
  return h("input", { ...common(props), value: text, placeholder: shownDefault(standard), autocomplete: "off", onInput: (/** @type {any} */ event) => (event.currentTarget.value ? onSet(asTyped(event.currentTarget.value)) : onReset()) });
}

/**
 * An object where one is typed, as for a choice of tools; else the text.
 * @param {string} text
 */
function asTyped(text) {
  if (!text.startsWith("{")) return text;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** @param {Props} props */
function ListInput(props) {
  const { value, onSet, onReset } = props;
  const lines = Array.isArray(value) ? value : value === undefined ? [] : [value];
  /** @param {string} text */
  const type = (text) => (text === "" ? onReset() : onSet(text.split("\n")));
  return h("textarea", { ...common(props), class: "input small code short", rows: Math.max(1, lines.length), value: lines.join("\n"), placeholder: "not set; one a line", onInput: (/** @type {any} */ event) => type(event.currentTarget.value) });
}

/** @param {Props} props */
function JsonInput(props) {
  const { value, isSet, onSet, onReset, field } = props;
  const [typed, setTyped] = useState(/** @type {string | null} */ (null));
  const [wrong, setWrong] = useState("");
  /** @param {string} text */
  const type = (text) => {
    setTyped(text);
    setWrong("");
    if (text.trim() === "") return onReset();
    try {
      onSet(JSON.parse(text));
    } catch {
      setWrong("No JSON yet");
    }
  };
  return h("div", { class: "stack tight" },
    h("textarea", { ...common(props), class: "input small code short", rows: 1, "aria-invalid": wrong !== "" || props.fault !== "", value: typed ?? (isSet ? JSON.stringify(value) : ""), placeholder: field.kind === "numbers" ? "not set; such as [1, 2]" : 'not set; such as {"key": 1}', onInput: (/** @type {any} */ event) => type(event.currentTarget.value), onBlur: () => wrong || setTyped(null) }),
    wrong && h("p", { class: "small fault" }, wrong),
  );
}
