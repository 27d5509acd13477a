import { render } from "preact";

import { App } from "./app";
import { Model } from "./model";

const model = new Model();
model.start();
render(<App model={model} />, document.body);
