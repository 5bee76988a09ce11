(** INV-1 descent: on an L-smooth loss of any number of coordinates a gradient step of rate lr with 0 <= lr L <= 1 lowers
    the loss by at least lr/2 |g|^2; a quadratic shows that nothing larger holds, and that a rate above 2/L can raise a
    loss. And the rise between two windows of losses, compared without a root. *)

Require Import Reals Lra Lia.
From Karat Require Import Carrier Sums.

Section Formulas.
Context {K : Carrier}.
Local Open Scope carrier_scope.

Definition gradient_step (point gradient : nat -> K) (lr : K) (i : nat) : K := point i - lr * gradient i.

(** n: the number of coordinates. *)
Definition smooth_bound (n : nat) (value : K) (gradient move : nat -> K) (smoothness : K) : K :=
  value + sum n (fun i => gradient i * move i) + smoothness * sum n (fun i => move i * move i) / of_Z 2.

Definition guaranteed_descent (n : nat) (gradient : nat -> K) (lr : K) : K :=
  lr * sum n (fun i => gradient i * gradient i) / of_Z 2.

Definition window_mean (n : nat) (losses : nat -> K) : K := sum n losses / of_Z (Z.of_nat n).

Definition window_variance (n : nat) (losses : nat -> K) : K :=
  let mean := window_mean n losses in
  sum n (fun i => (losses i - mean) * (losses i - mean)) / of_Z (Z.of_nat n - 1).

(** early and late: mean and variance. *)
Definition rise_margin (early late : K * K) (window z tolerance : K) : K :=
  let rise := fst late - fst early in
  z * z * (snd early + snd late) / window + tolerance * tolerance - rise * absolute rise.

(** What the guard watches. *)
Definition margin (early_mean early_variance late_mean late_variance window z tolerance : K) : K :=
  rise_margin (early_mean, early_variance) (late_mean, late_variance) window z tolerance.
End Formulas.

Local Open Scope R_scope.

Local Notation point := (nat -> R).
Local Notation step := (gradient_step (K := on_R)).
Local Notation descent := (guaranteed_descent (K := on_R)).
Definition square (n : nat) (x : point) : R := total n (fun i => x i * x i).

(** f is L-smooth with gradient g: it lies below its quadratic bound, from every point to every other. *)
Definition smooth (n : nat) (f : point -> R) (g : point -> point) (L : R) : Prop :=
  forall x y : point, f y <= smooth_bound (K := on_R) n (f x) (g x) (fun i => (y i - x i)%R) L.

Lemma descent_is (n : nat) (g : point) (lr : R) : descent n g lr = lr * square n g / 2.
Proof. reflexivity. Qed.

Lemma square_nonneg (n : nat) (x : point) : 0 <= square n x.
Proof. apply total_nonneg. intros i _. nra. Qed.

(** The bound at the step: what is left of the rate is lr (1 - lr L / 2). *)
Lemma bound_at_step (n : nat) (value : R) (x g : point) (lr L : R) :
  smooth_bound (K := on_R) n value g (fun i => (step x g lr i - x i)%R) L =
  value - lr * (1 - lr * L / 2) * square n g.
Proof.
  unfold smooth_bound, gradient_step, square. simpl.
  rewrite (total_ext n (fun i => g i * (x i - lr * g i - x i)) (fun i => - lr * (g i * g i))) by (intros; ring).
  rewrite (total_ext n (fun i => (x i - lr * g i - x i) * (x i - lr * g i - x i)) (fun i => lr * lr * (g i * g i)))
    by (intros; ring).
  rewrite !total_scal. lra.
Qed.

(** At any rate whatever: the loss after a step is at most what it was, less lr (1 - lr L / 2) |g|^2. *)
Theorem step_at_any_rate (n : nat) (f : point -> R) (g : point -> point) (L lr : R) (x : point) :
  smooth n f g L -> f (step x (g x) lr) <= f x - lr * (1 - lr * L / 2) * square n (g x).
Proof. intro S. rewrite <- bound_at_step with (x := x). apply S. Qed.

(** L/2 |x|^2, the loss that all witnesses below are; its gradient is L x. *)
Definition quadratic (n : nat) (L : R) (x : point) : R := L * square n x / 2.
Definition slope (L : R) (x : point) : point := fun i => L * x i.

(** It is L-smooth with equality, so that every bound below that it attains is sharp. *)
Theorem quadratic_is_its_bound (n : nat) (L : R) (x y : point) :
  quadratic n L y = smooth_bound (K := on_R) n (quadratic n L x) (slope L x) (fun i => (y i - x i)%R) L.
Proof.
  unfold quadratic, slope, smooth_bound, square. simpl.
  rewrite (total_ext n (fun i => L * x i * (y i - x i)) (fun i => L * (x i * y i) - L * (x i * x i))) by (intros; ring).
  rewrite (total_ext n (fun i => (y i - x i) * (y i - x i)) (fun i => y i * y i + (x i * x i - 2 * (x i * y i))))
    by (intros; ring).
  rewrite total_plus, !total_minus, !total_scal. lra.
Qed.

Lemma quadratic_smooth (n : nat) (L : R) : smooth n (quadratic n L) (slope L) L.
Proof. intros x y. rewrite <- quadratic_is_its_bound. apply Rle_refl. Qed.

Lemma step_at_any_rate_satisfiable :
  exists (n : nat) (f : point -> R) (g : point -> point) (L lr : R) (x : point), smooth n f g L.
Proof. exists 3%nat, (quadratic 3 2), (slope 2), 2, 1, (fun _ => 1). apply quadratic_smooth. Qed.

(** The descent lemma. *)
Theorem step_descends (n : nat) (f : point -> R) (g : point -> point) (L lr : R) (x : point) :
  smooth n f g L -> 0 <= lr -> lr * L <= 1 -> f (step x (g x) lr) <= f x - descent n (g x) lr.
Proof.
  intros S P H. apply Rle_trans with (1 := step_at_any_rate n f g L lr x S). rewrite descent_is.
  pose proof (square_nonneg n (g x)). assert (0 <= lr * square n (g x)) by (apply Rmult_le_pos; assumption). nra.
Qed.

Lemma step_descends_satisfiable :
  exists (n : nat) (f : point -> R) (g : point -> point) (L lr : R) (x : point),
  smooth n f g L /\ 0 <= lr /\ lr * L <= 1.
Proof.
  exists 3%nat, (quadratic 3 2), (slope 2), 2, (1 / 2), (fun _ => 1). split; [apply quadratic_smooth | lra].
Qed.

Lemma quadratic_step (n : nat) (L lr : R) (x : point) :
  quadratic n L (step x (slope L x) lr) = quadratic n L x - lr * (1 - lr * L / 2) * square n (slope L x).
Proof. rewrite (quadratic_is_its_bound n L x), bound_at_step. reflexivity. Qed.

(** The lemma is sharp: at lr = 1/L the quadratic falls by lr/2 |g|^2 exactly. *)
Theorem descent_is_attained (n : nat) (L lr : R) (x : point) : lr * L = 1 ->
  quadratic n L (step x (slope L x) lr) = quadratic n L x - descent n (slope L x) lr.
Proof. intro H. rewrite quadratic_step, descent_is, H. lra. Qed.

Lemma descent_is_attained_satisfiable : exists (n : nat) (L lr : R) (x : point), lr * L = 1.
Proof. exists 3%nat, 2, (/ 2), (fun _ => 1). lra. Qed.

(** And its rates are all that descend so: on the quadratic a larger one falls by less than lr/2 |g|^2. *)
Theorem larger_rates_descend_less (n : nat) (L lr : R) (x : point) : 0 < lr -> 1 < lr * L -> 0 < square n x ->
  quadratic n L x - descent n (slope L x) lr < quadratic n L (step x (slope L x) lr).
Proof.
  intros P H X. rewrite quadratic_step, descent_is.
  assert (E : square n (slope L x) = L * L * square n x).
  { unfold square, slope. rewrite <- total_scal. apply total_ext. intros. ring. }
  rewrite E. assert (0 < L) by nra. assert (0 < L * L * square n x) by (repeat apply Rmult_lt_0_compat; lra).
  set (s := L * L * square n x) in *. clearbody s. assert (0 < lr * s) by (apply Rmult_lt_0_compat; lra). nra.
Qed.

Lemma larger_rates_descend_less_satisfiable :
  exists (n : nat) (L lr : R) (x : point), 0 < lr /\ 1 < lr * L /\ 0 < square n x.
Proof. exists 3%nat, 2, 1, (fun _ => 1). unfold square. rewrite total_const. simpl. lra. Qed.

(** Above 2/L a step raises the quadratic, from everywhere but its minimum. *)
Theorem step_rises_above_two_over_L (n : nat) (L lr : R) (x : point) : 0 < L -> 2 < lr * L -> 0 < square n x ->
  quadratic n L x < quadratic n L (step x (slope L x) lr).
Proof.
  intros P H X. rewrite quadratic_step.
  assert (E : square n (slope L x) = L * L * square n x).
  { unfold square, slope. rewrite <- total_scal. apply total_ext. intros. ring. }
  rewrite E. assert (0 < L * L * square n x) by (repeat apply Rmult_lt_0_compat; lra).
  set (s := L * L * square n x) in *. clearbody s. assert (0 < lr) by nra.
  assert (0 < lr * s) by (apply Rmult_lt_0_compat; lra). nra.
Qed.

Lemma step_rises_above_two_over_L_satisfiable :
  exists (n : nat) (L lr : R) (x : point), 0 < L /\ 2 < lr * L /\ 0 < square n x.
Proof. exists 3%nat, 2, 2, (fun _ => 1). unfold square. rewrite total_const. simpl. lra. Qed.

(** The points of a run of gradient descent. *)
Fixpoint run (g : point -> point) (lr : R) (x : point) (steps : nat) : point :=
  match steps with O => x | S k => step (run g lr x k) (g (run g lr x k)) lr end.

(** Over a whole run the guaranteed descents add up to no more than the loss has fallen. *)
Theorem run_descends (n : nat) (f : point -> R) (g : point -> point) (L lr : R) (x : point) (steps : nat) :
  smooth n f g L -> 0 <= lr -> lr * L <= 1 ->
  total steps (fun k => descent n (g (run g lr x k)) lr) <= f x - f (run g lr x steps).
Proof.
  intros S P H. induction steps as [|k IH]; [rewrite total_0; simpl; lra|].
  rewrite total_S. pose proof (step_descends n f g L lr (run g lr x k) S P H) as D. simpl run. lra.
Qed.

Lemma run_descends_satisfiable :
  exists (n : nat) (f : point -> R) (g : point -> point) (L lr : R) (x : point) (steps : nat),
  smooth n f g L /\ 0 <= lr /\ lr * L <= 1.
Proof.
  exists 3%nat, (quadratic 3 2), (slope 2), 2, (1 / 2), (fun _ => 1), 10%nat. split; [apply quadratic_smooth | lra].
Qed.

Lemma one_at_most_the_mean (steps : nat) (a : nat -> R) (c : R) : (0 < steps)%nat -> total steps a <= INR steps * c ->
  exists k, (k < steps)%nat /\ a k <= c.
Proof.
  induction steps as [|m IH]; intros P T; [lia|]. rewrite total_S, S_INR in T.
  destruct (Rle_lt_dec (a m) c) as [A|A]; [exists m; split; [lia | exact A]|].
  destruct (Nat.eq_dec m 0) as [->|N]; [rewrite total_0 in T; simpl in T; lra|].
  destruct IH as [k [B C]]; [lia | lra |]. exists k. split; [lia | exact C].
Qed.

(** So on a loss that nowhere is below `least` some gradient of the run has |g|^2 <= 2 (f(x) - least) / (lr steps): with
    more steps gradients as small as one likes are reached, and none stays away from zero. *)
Theorem run_reaches_small_gradients
  (n : nat) (f : point -> R) (g : point -> point) (L lr : R) (x : point) (steps : nat) (least : R) :
  smooth n f g L -> 0 < lr -> lr * L <= 1 -> (0 < steps)%nat -> (forall y : point, least <= f y) ->
  exists k, (k < steps)%nat /\ square n (g (run g lr x k)) <= 2 * (f x - least) / (lr * INR steps).
Proof.
  intros S P H N B. pose proof (run_descends n f g L lr x steps S ltac:(lra) H) as D. specialize (B (run g lr x steps)).
  assert (0 < INR steps) by (apply lt_0_INR; exact N).
  apply (one_at_most_the_mean steps (fun k => square n (g (run g lr x k)))); [exact N|].
  unfold guaranteed_descent in D. simpl in D.
  rewrite (total_ext steps _ (fun k => lr / 2 * square n (g (run g lr x k)))) in D
    by (intros; unfold square; simpl; lra).
  rewrite total_scal in D. apply Rmult_le_reg_l with (lr / 2); [lra|].
  apply Rle_trans with (f x - least); [lra|]. right. field. lra.
Qed.

Lemma run_reaches_small_gradients_satisfiable :
  exists (n : nat) (f : point -> R) (g : point -> point) (L lr : R) (x : point) (steps : nat) (least : R),
  smooth n f g L /\ 0 < lr /\ lr * L <= 1 /\ (0 < steps)%nat /\ (forall y : point, least <= f y).
Proof.
  exists 3%nat, (quadratic 3 2), (slope 2), 2, (1 / 2), (fun _ => 1), 10%nat, 0.
  repeat split; try lra; try lia; [apply quadratic_smooth|].
  intro y. unfold quadratic. pose proof (square_nonneg 3 y). lra.
Qed.

(** The mean of a window lies between any bounds of its losses. *)
Theorem mean_between (n : nat) (losses : nat -> R) (low high : R) : (0 < n)%nat ->
  (forall i, (i < n)%nat -> low <= losses i <= high) -> low <= window_mean (K := on_R) n losses <= high.
Proof.
  intros N B. unfold window_mean. simpl. rewrite <- INR_IZR_INZ. apply lt_0_INR in N.
  assert (E : forall c, c = INR n * c / INR n) by (intro c; field; lra). rewrite (E low), (E high).
  rewrite <- !total_const. unfold Rdiv.
  split; apply Rmult_le_compat_r; try (left; apply Rinv_0_lt_compat; exact N); apply total_le; intros i Hi; apply B, Hi.
Qed.

Lemma mean_between_satisfiable : exists (n : nat) (losses : nat -> R) (low high : R), (0 < n)%nat /\
  (forall i, (i < n)%nat -> low <= losses i <= high).
Proof. exists 3%nat, (fun _ => 2), 1, 3. split; [lia | intros; lra]. Qed.

Lemma deviations (n : nat) (x : nat -> R) (m : R) :
  total n (fun i => (x i - m) * (x i - m)) = square n x - 2 * m * total n x + INR n * (m * m).
Proof.
  unfold square. rewrite (total_ext n _ (fun i => x i * x i + (-2 * m * x i + m * m))) by (intros; simpl; ring).
  rewrite !total_plus, total_scal, total_const. simpl. ring.
Qed.

Lemma mean_is (n : nat) (losses : nat -> R) : window_mean (K := on_R) n losses = total n losses / INR n.
Proof. unfold window_mean. rewrite INR_IZR_INZ. reflexivity. Qed.

Lemma variance_of_deviations (n : nat) (losses : nat -> R) :
  window_variance (K := on_R) n losses =
  total n (fun i => (losses i - total n losses / INR n) * (losses i - total n losses / INR n)) / (INR n - 1).
Proof. unfold window_variance. rewrite mean_is, INR_IZR_INZ, <- minus_IZR. reflexivity. Qed.

(** The sample variance of n >= 2 losses is (n S2 - S1^2) / (n (n - 1)), with S1 and S2 the sums of losses and of squares. *)
Theorem variance_is (n : nat) (losses : nat -> R) : (2 <= n)%nat ->
  window_variance (K := on_R) n losses =
  (INR n * square n losses - total n losses ^ 2) / (INR n * (INR n - 1)).
Proof.
  intro N. apply le_INR in N. simpl in N. rewrite variance_of_deviations, deviations.
  set (s := total n losses : R). set (q := square n losses). set (k := INR n) in *. clearbody s q k.
  change ((q - 2 * (s / k) * s + k * (s / k * (s / k))) / (k - 1) = (k * q - s ^ 2) / (k * (k - 1))). field. lra.
Qed.

Lemma variance_is_satisfiable : exists (n : nat) (losses : nat -> R), (2 <= n)%nat.
Proof. exists 3%nat, (fun _ => 2). lia. Qed.

(** A sample variance is never negative. *)
Theorem variance_nonneg (n : nat) (losses : nat -> R) : (2 <= n)%nat -> 0 <= window_variance (K := on_R) n losses.
Proof.
  intro N. apply le_INR in N. simpl in N. rewrite variance_of_deviations.
  apply Rle_mult_inv_pos; [|lra]. apply total_nonneg. intros i _. apply Rle_0_sqr.
Qed.

Lemma variance_nonneg_satisfiable : exists (n : nat) (losses : nat -> R), (2 <= n)%nat.
Proof. exact variance_is_satisfiable. Qed.

(** The margin is >= 0 exactly where the rise is at most sqrt(z^2 standard errors^2 + tolerance^2). *)
Theorem margin_is_the_rise (early_mean early_variance late_mean late_variance window z tolerance : R) :
  0 < window -> 0 <= early_variance + late_variance ->
  (0 <= margin (K := on_R) early_mean early_variance late_mean late_variance window z tolerance <->
   late_mean - early_mean <= sqrt (z ^ 2 * ((early_variance + late_variance) / window) + tolerance ^ 2)).
Proof.
  intros W V. unfold margin, rise_margin. rewrite absolute_Rabs. simpl.
  set (rise := late_mean - early_mean). set (v := early_variance + late_variance) in *.
  replace (z * z * v / window) with (z ^ 2 * (v / window)) by (field; lra).
  replace (z * (z * 1)) with (z ^ 2) by ring. replace (tolerance * (tolerance * 1)) with (tolerance * tolerance) by ring.
  assert (0 <= v / window) by (apply Rle_mult_inv_pos; assumption).
  assert (P : 0 <= z ^ 2 * (v / window) + tolerance * tolerance) by (pose proof (pow2_ge_0 z); nra).
  set (r := z ^ 2 * (v / window) + tolerance * tolerance) in *. clearbody r rise.
  pose proof (sqrt_pos r) as Q. pose proof (sqrt_sqrt r P) as S. set (q := sqrt r) in *. clearbody q.
  destruct (Rle_lt_dec rise 0) as [N|N]; [rewrite Rabs_left1 by exact N | rewrite Rabs_right by lra]; split; intro; nra.
Qed.

Lemma margin_is_the_rise_satisfiable :
  exists early_mean early_variance late_mean late_variance window z tolerance : R,
  0 < window /\ 0 <= early_variance + late_variance.
Proof. exists 3, 1, 2, 1, 60, 6, (1 / 20). lra. Qed.
