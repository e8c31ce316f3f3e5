// Airflow's own React, which is a global for plugins. With a second copy of React, hooks would fail.
const { React, ReactDOM, ReactRouterDOM } = globalThis;

export const {
  Fragment,
  createElement: h,
  useCallback,
  useEffect,
  useId,
  useLayoutEffect,
  useMemo,
  useRef,
  useState,
} = React;
export const { createPortal } = ReactDOM;
export const { Link: RouterLink, useLocation, useNavigate } = ReactRouterDOM;
