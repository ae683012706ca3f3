import js from "@eslint/js";
import globals from "globals";

// The files are scripts that leaf.report.page writes into one page, in an order that each section names: a file makes one
// name for those after it.
const ours = [
  ["leaf", "plots", "vegaEmbed"],
  ["runTables", "curvePlots"],
  ["CreditView", "DrawnTree", "treeLayout", "TokenNote"],
  ["words", "Comparison", "scoreTables", "itemCard", "ItemChoice"],
].flat();

export default [
  js.configs.recommended,
  {
    languageOptions: {
      sourceType: "script",
      globals: { ...globals.browser, ...Object.fromEntries(ours.map((name) => [name, "readonly"])) },
    },
    rules: {
      "no-redeclare": ["error", { builtinGlobals: false }],
      "no-unused-vars": ["error", { vars: "local" }],
      "no-var": "error",
      "prefer-const": "error",
      eqeqeq: "error",
      strict: ["error", "global"],
      "max-len": ["error", 120],
      "max-lines": ["error", 400],
      "max-lines-per-function": ["error", { max: 60, IIFEs: false }],
    },
  },
];
